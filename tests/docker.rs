//! The docker engine on real Docker Engines, in a laboratory of its own.

use std::collections::BTreeSet;

use serde_json::json;

#[path = "support/lab.rs"]
mod lab;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon};
use registry::Registry;
use support::eventually;

// One after the other: each has machines of its own, and there are two cores.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn with_lab(machines: u32, test: impl FnOnce(&Lab)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_none() {
        test(&Lab::engines(machines));
    }
}

fn containers(lab: &Lab) -> BTreeSet<String> {
    lab.docker("n1", &["ps", "-q", "--no-trunc"]).lines().map(str::to_owned).collect()
}

#[test]
fn the_practice_on_one_engine() {
    with_lab(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &[]);
        assert!(daemon.log().contains("engine docker"), "found by itself:\n{}", daemon.log());
        let url = format!("http://{}:8080/", lab.address("n1"));
        let version = || String::from_utf8_lossy(&curl(&url).stdout).into_owned();

        daemon.ok(&["service", "create", "--name", "web", "--replicas", "2", "--publish", "8080:8080", "demo:1"]);
        assert!(version().contains(r#""version":"1""#), "{}", version());
        daemon.ok(&["service", "scale", "web=3"]);
        assert_eq!(containers(lab).len(), 3);

        // One that is killed is replaced.
        let before = containers(lab);
        let victim = before.first().unwrap();
        lab.docker("n1", &["kill", victim]);
        let task = daemon.task_that("web", "failed", |task| task["state"] == "failed");
        assert_eq!(task["reason"], "exit code 137");
        eventually("three run again", 20, || {
            let now = containers(lab);
            (now.len() == 3 && !now.contains(victim)).then_some(())
        });

        daemon.ok(&["service", "update", "web", "--image", "demo:2", "--update-monitor", "200ms"]);
        assert!(version().contains(r#""version":"2""#), "{}", version());
        daemon.ok(&["service", "rollback", "web"]);
        assert!(version().contains(r#""version":"1""#), "{}", version());
        daemon.ok(&["network", "create", "own", "--subnet", "10.78.0.0/24", "--gateway", "10.78.0.9"]);
        let gateway = lab.docker("n1", &["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "own"]);
        assert_eq!(gateway, "10.78.0.9");
        assert!(daemon.ok(&["network", "ls", "--quiet"]).contains("own"));
        daemon.ok(&["network", "rm", "own"]);
        assert!(daemon.fails(&["network", "rm", "own"]).contains("neap network ls"));
        daemon.ok(&["volume", "create", "data"]);
        assert!(daemon.json(&["volume", "ls", "--format", "json"])[0]["mountpoint"].as_str().unwrap().contains("data"));
        daemon.ok(&["volume", "rm", "data"]);
        let lines = daemon.ok(&["service", "logs", "web"]);
        assert!(lines.contains("listens on 0.0.0.0:8080"), "{lines}");

        daemon.ok(&["service", "rm", "web"]);
        eventually("nothing is left", 10, || lab.docker("n1", &["ps", "-aq"]).is_empty().then_some(()));
    });
}

fn curl(url: &str) -> std::process::Output {
    std::process::Command::new("curl").args(["-s", "--max-time", "5", url]).output().unwrap()
}

#[test]
fn flags_reach_the_container() {
    with_lab(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &["--engine", "docker"]);
        daemon.secret("shop/password", "hunter2");
        daemon.config("shop/nginx", "listen 80;\n");
        #[rustfmt::skip]
        daemon.ok(&[
            "service", "create", "--name", "all", "--hostname", "here", "--env", "A=1", "--env", "NEAP_TASK=other.7", "--user", "65534:65534",
            "--workdir", "/tmp", "--mount", "type=volume,source=data,target=/data", "--mount", "type=tmpfs,target=/scratch",
            "--network", "name=back,alias=other", "--network", "front", "--host", "db:10.0.0.2", "--dns", "10.0.0.3", "--dns-search", "lan",
            "--dns-option", "ndots:2", "--cap-add", "NET_ADMIN", "--cap-drop", "MKNOD", "--group", "100",
            "--sysctl", "net.core.somaxconn=1000", "--ulimit", "nofile=100:200", "--read-only", "--init",
            "--container-label", "team=shop", "--log-driver", "json-file", "--log-opt", "tag=x", "--limit-memory", "64M",
            "--limit-cpu", "0.5", "--limit-pids", "50", "--reserve-memory", "16M", "--stop-signal", "USR1",
            "--stop-grace-period", "3s", "--secret", "source=shop/password,target=/run/secrets/password,uid=65534,gid=8,mode=0400", "--no-healthcheck",
            "--config", "source=shop/nginx,target=/etc/nginx/site.conf,uid=65534,gid=100,mode=0440",
            "--publish", "mode=host,published=9100,target=9100", "--publish", "dns=127.0.0.1:5353:53", "--publish",
            "mode=host,published=9053,target=53,protocol=udp", "--entrypoint", "/bin/sh", "busybox", "-c", "cat /run/secrets/password /etc/nginx/site.conf; stat -c %u:%g:%a /etc/nginx/site.conf /run/secrets/password; id; echo up; trap 'exit 0' USR1; while :; do sleep 0.1; done",
        ]);
        let inspected: serde_json::Value =
            serde_json::from_str(&lab.docker("n1", &["inspect", containers(lab).first().unwrap()])).unwrap();
        let container = &inspected[0];
        let host = &container["HostConfig"];
        let check = |path: &serde_json::Value, expected: serde_json::Value| assert_eq!(*path, expected);
        check(&container["Config"]["Hostname"], json!("here"));
        check(&container["Config"]["User"], json!("65534:65534"));
        check(&container["Config"]["WorkingDir"], json!("/tmp"));
        check(&container["Config"]["StopSignal"], json!("SIGUSR1"));
        let env: Vec<&str> = container["Config"]["Env"].as_array().unwrap().iter().filter_map(|v| v.as_str()).collect();
        assert!(
            env.contains(&"A=1") && env.contains(&"NEAP_TASK=all.1") && !env.contains(&"NEAP_TASK=other.7"),
            "{env:?}"
        );
        check(&container["Config"]["Entrypoint"], json!(["/bin/sh"]));
        check(&container["Config"]["Healthcheck"]["Test"], json!(["NONE"]));
        check(&container["Config"]["Labels"]["team"], json!("shop"));
        check(&container["Config"]["Labels"]["neap.service"], json!("all"));
        check(&container["HostConfig"]["RestartPolicy"]["Name"], json!("no"));
        check(&host["Memory"], json!(64 << 20));
        check(&host["MemoryReservation"], json!(16 << 20));
        check(&host["NanoCpus"], json!(500_000_000));
        check(&host["PidsLimit"], json!(50));
        check(&host["ExtraHosts"], json!(["db:10.0.0.2"]));
        check(&host["Dns"], json!(["10.0.0.3"]));
        check(&host["DnsSearch"], json!(["lan"]));
        check(&host["DnsOptions"], json!(["ndots:2"]));
        check(&host["CapAdd"], json!(["NET_ADMIN"]));
        check(&host["CapDrop"], json!(["MKNOD"]));
        check(&host["GroupAdd"], json!(["100"]));
        check(&host["Sysctls"]["net.core.somaxconn"], json!("1000"));
        check(&host["Ulimits"], json!([{ "Name": "nofile", "Soft": 100, "Hard": 200 }]));
        check(&host["ReadonlyRootfs"], json!(true));
        check(&host["Init"], json!(true));
        let everywhere = |port: &str| json!([{ "HostIp": "", "HostPort": port }]);
        check(&host["PortBindings"], json!({ "9100/tcp": everywhere("9100"), "53/udp": everywhere("9053") }));
        let ports = daemon.tasks("all")[0]["ports"].clone();
        assert!(
            ports["p9100"].as_str().unwrap().ends_with(":9100")
                && ports["p53"].as_str().unwrap().ends_with(":9053/udp"),
            "{ports}"
        );
        check(&host["LogConfig"]["Config"]["tag"], json!("x"));
        check(&host["LogConfig"]["Config"]["max-file"], json!("5"));
        let networks = container["NetworkSettings"]["Networks"].as_object().unwrap();
        assert_eq!(networks.keys().collect::<Vec<_>>(), ["back", "front"]);
        let aliases = networks["back"]["Aliases"].to_string();
        assert!(aliases.contains("\"all\"") && aliases.contains("\"other\""), "{aliases}");
        let targets: BTreeSet<&str> =
            container["Mounts"].as_array().unwrap().iter().filter_map(|mount| mount["Destination"].as_str()).collect();
        assert!(targets.is_superset(&BTreeSet::from(["/data", "/scratch", "/run/secrets"])), "{targets:?}");
        let lines = daemon.ok(&["service", "logs", "all"]);
        assert!(
            lines.contains("hunter2")
                && lines.contains("listen 80;")
                && lines.contains("65534:100:440")
                && lines.contains("65534:8:400")
                && lines.contains("uid=65534"),
            "{lines}"
        );

        // It is a container's secret, and nobody's on the host.
        let mode = lab.run("n1", &["stat", "-c", "%a", "/run/neap-containers"]);
        assert_eq!(mode.trim(), "700");
        let begun = std::time::Instant::now();
        daemon.ok(&["service", "rm", "all"]);
        assert!(begun.elapsed().as_secs() < 3, "its own signal ends it");
        eventually("its secrets are gone", 10, || {
            lab.run("n1", &["ls", "/run/neap-containers"]).trim().is_empty().then_some(())
        });
    });
}

#[test]
fn containers_are_taken_back() {
    with_lab(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &["--engine", "docker"]);
        daemon.ok(&["service", "create", "--name", "web", "--replicas", "2", "-p", "8080:8080", "demo:1"]);
        let before = containers(lab);
        daemon.end("KILL");
        // What happens while nobody looks is found out afterwards.
        let victim = before.first().unwrap();
        lab.docker("n1", &["kill", victim]);
        daemon.up(&[]);
        eventually("two run again", 20, || {
            (daemon.live("web").iter().filter(|task| task["state"] == "running").count() == 2).then_some(())
        });
        let now = containers(lab);
        assert_eq!(now.intersection(&before).count(), 1, "the other one was not restarted");
        daemon.task_that("web", "ended with its code", |task| task["reason"] == "exit code 137");

        // One that was removed, its record with it.
        daemon.end("KILL");
        lab.docker("n1", &["rm", "-f", now.first().unwrap()]);
        daemon.up(&[]);
        eventually("two run again", 20, || (containers(lab).len() == 2).then_some(()));

        // A daemon that dies between making a container and starting it starts it after all, once.
        daemon.end("KILL");
        daemon.up(&["NEAP_FAULT=docker.after-create:1"]);
        daemon.neap(&["service", "create", "--detach", "--name", "late", "busybox", "sleep", "1000"]);
        eventually("the daemon has died", 10, || (!daemon.neap(&["service", "ls"]).status.success()).then_some(()));
        let made = |lab: &Lab| lab.docker("n1", &["ps", "-aq", "--filter", "label=neap.service=late"]);
        let container = made(lab);
        assert_eq!(container.lines().count(), 1);
        daemon.up(&[]);
        daemon.task_that("late", "runs", |task| task["state"] == "running");
        assert_eq!(made(lab), container);
    });
}

#[test]
fn a_docker_engine_that_is_restarted() {
    with_lab(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &["--engine", "docker"]);
        daemon.ok(&["service", "create", "--name", "web", "--replicas", "2", "-p", "8080:8080", "demo:1"]);
        for how in ["engine-stop", "engine-end"] {
            let before = containers(lab);
            lab.ok(&[how, "n1"]);
            lab.ok(&["engine-start", "n1"]);
            eventually("two run again", 40, || {
                let running = daemon.live("web").iter().filter(|task| task["state"] == "running").count();
                let now = containers(lab);
                (running == 2 && now.len() == 2 && now.is_disjoint(&before)).then_some(())
            });
        }
        // Away for longer: said, and over when it is back.
        lab.ok(&["engine-stop", "n1"]);
        eventually("the node is down", 20, || {
            (daemon.json(&["node", "ls", "--format", "json"])[0]["state"] == "down").then_some(())
        });
        daemon.ok(&["service", "scale", "web=3", "--detach"]);
        daemon.task_that("web", "waits", |task| {
            task["reason"].as_str().is_some_and(|reason| reason == "no suitable node (1 node down)")
        });
        lab.ok(&["engine-start", "n1"]);
        eventually("three run", 40, || {
            (daemon.live("web").iter().filter(|task| task["state"] == "running").count() == 3).then_some(())
        });
        assert_eq!(containers(lab).len(), 3, "{}", daemon.ok(&["service", "ps", "web", "--all"]));
    });
}

#[test]
fn what_goes_wrong_is_said() {
    with_lab(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &["--engine", "docker"]);
        let create = |name: &str, args: &[&str]| {
            daemon.ok(&[&["service", "create", "--detach", "--name", name], args].concat());
        };
        let reason = |name: &str, says: &str| {
            daemon.task_that(name, &format!("says {says}"), |task| {
                task["reason"].as_str().is_some_and(|reason| reason.contains(says))
            })
        };
        // A registry that is not there. No request goes out of the laboratory.
        let image = format!("{}:5999/none:1", lab.host_address());
        create("no-registry", &[&image]);
        reason("no-registry", "connection refused");
        create("no-image", &["--pull", "never", "absent:1"]);
        reason("no-image", "image \"absent:1\" is not on node \"n1\"");
        create("no-program", &["busybox", "/bin/none"]);
        reason("no-program", "/bin/none");
        create("exits", &["busybox", "sh", "-c", "exit 3"]);
        reason("exits", "exit code 3");
        create("no-memory", &["--reserve-memory", "900G", "busybox", "sleep", "1000"]);
        reason("no-memory", "insufficient memory on 1 node");
        create(
            "unhealthy",
            &[
                "--health-cmd",
                "echo no; exit 1",
                "--health-interval",
                "200ms",
                "--health-retries",
                "2",
                "busybox",
                "sleep",
                "1000",
            ],
        );
        reason("unhealthy", "exit code 1: no");
        // Heals when the cause is gone.
        lab.docker("n1", &["tag", "busybox", "absent:1"]);
        daemon.task_that("no-image", "runs", |task| task["state"] == "complete" || task["state"] == "running");
        // None of them spins: a handful of attempts in the time that this test took.
        for name in ["no-registry", "no-program", "exits"] {
            let attempts = daemon.tasks(name).len();
            assert!(attempts <= 8, "{name}: {attempts} attempts");
        }
        let refused = daemon.fails(&["service", "create", "--name", "x", "--", "./program"]);
        assert!(refused.contains("image: is missing, and the docker engine runs containers"), "{refused}");
        let refused = daemon.fails(&["service", "create", "--name", "x", "--isolation", "hyperv", "demo:1"]);
        assert!(refused.contains("--isolation: is not supported"), "{refused}");
    });
}

#[test]
fn the_images_own_check_is_read_and_overridden() {
    with_lab(1, |lab| {
        lab.docker("n1", &["create", "--name", "make", "busybox"]);
        let check = r"HEALTHCHECK --interval=200ms --retries=2 CMD test -e /tmp/ok || { echo missing; exit 1; }";
        lab.docker("n1", &["commit", "-c", check, "make", "checked"]);
        let daemon = LabDaemon::start(lab, "n1", &["--engine", "docker"]);
        let shell = |service: &str, line: &str| {
            let id = lab.docker("n1", &["ps", "-q", "--filter", &format!("label=neap.service={service}")]);
            lab.docker("n1", &["exec", &id, "sh", "-c", line]);
        };
        let health = |service: &str, is: &str| daemon.task_that(service, is, |task| task["health"] == is);

        let sleep = ["checked", "sh", "-c", "touch /tmp/ok; sleep 1000"];
        daemon.ok(&[&["service", "create", "--name", "read"], &sleep[..]].concat());
        health("read", "healthy");
        shell("read", "rm /tmp/ok");
        let failed = daemon.task_that("read", "failed its check", |task| task["state"] == "failed");
        assert!(failed["reason"].as_str().unwrap().contains("missing"), "{failed}");
        health("read", "healthy");

        daemon.ok(&[&["service", "create", "--name", "kept", "--health-on-fail", "none"], &sleep[..]].concat());
        health("kept", "healthy");
        shell("kept", "rm /tmp/ok");
        health("kept", "unhealthy");
        shell("kept", "touch /tmp/ok");
        health("kept", "healthy");
        assert_eq!(daemon.tasks("kept").len(), 1, "it was only shown");

        daemon.ok(&["service", "create", "--name", "off", "--no-healthcheck", "checked", "sleep", "1000"]);
        health("off", "none");
        daemon.ok(&["service", "create", "--name", "own", "--health-cmd", "true", "checked", "sleep", "1000"]);
        health("own", "healthy");

        // A command that does not end is ended, with what it has started: none is left while the next one runs.
        #[rustfmt::skip]
        daemon.ok(&[
            "service", "create", "--name", "hangs", "--detach", "--health-cmd", "sleep 999; true", "--health-interval", "100ms",
            "--health-timeout", "200ms", "--health-retries", "5", "--health-on-fail", "none", "busybox", "sleep", "1000",
        ]);
        health("hangs", "unhealthy");
        let id = lab.docker("n1", &["ps", "-q", "--filter", "label=neap.service=hangs"]);
        let left = lab.docker("n1", &["top", &id]).matches("sleep 999").count();
        assert!(left <= 2, "five commands have timed out, and of the last one shell and sleep may be there: {left}");

        // A port that is not published, and listens on the container's loopback alone: asked in its own network.
        let inside = ["--health-interval", "200ms", "--health-retries", "1", "--health-on-fail", "unroute", "busybox"];
        let serve = ["sh", "-c", "touch /tmp/ok; exec httpd -f -p 127.0.0.1:8080 -h /tmp"];
        let http = ["service", "create", "--name", "http", "--health-http", "/ok", "--health-port", "8080"];
        daemon.ok(&[&http[..], &inside, &serve].concat());
        health("http", "healthy");
        shell("http", "rm /tmp/ok");
        let failed = daemon.task_that("http", "fails", |task| task["health"] == "unhealthy");
        assert!(failed["reason"].as_str().unwrap().contains("GET /ok: status 404"), "{failed}");
        shell("http", "touch /tmp/ok");
        health("http", "healthy");
        daemon.ok(&[&["service", "create", "--name", "tcp", "--health-tcp", "8080"], &inside[..], &serve].concat());
        health("tcp", "healthy");
        let wrong = [&["service", "create", "--name", "no", "--health-tcp", "admin"], &inside[..], &serve].concat();
        let wrong = daemon.neap(&wrong);
        let why = String::from_utf8_lossy(&wrong.stderr);
        assert!(!wrong.status.success() && why.contains("inside the replica's network"), "{why}");
    });
}

// n1 reaches `node` by ssh, with a key and without being asked anything.
fn serve_ssh(lab: &Lab, node: &str) -> String {
    let folder = lab.folder().join("ssh");
    std::fs::create_dir(&folder).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    for key in ["host", "client"] {
        let made =
            std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]).status();
        assert!(made.unwrap().success());
    }
    let public = std::fs::read_to_string(folder.join("host.pub")).unwrap();
    std::fs::write(folder.join("known_hosts"), format!("{} {public}", lab.address(node))).unwrap();
    let config = format!("IdentityFile {}\nUserKnownHostsFile {}\n", file("client"), file("known_hosts"));
    std::fs::write(folder.join("config"), config).unwrap();
    lab.run("n1", &["mount", "--bind", &file("config"), "/etc/ssh/ssh_config"]);
    let serve = format!(
        "mkdir -p -m 755 /run/sshd && exec /usr/sbin/sshd -f /dev/null -h {} -o AuthorizedKeysFile={} -o StrictModes=no \
         -o UsePAM=no -o PidFile=none >/dev/null 2>&1",
        file("host"),
        file("client.pub")
    );
    lab.run(node, &["sh", "-c", &serve]);
    format!("{node}=ssh://root@{}", lab.address(node))
}

#[test]
fn several_engines_are_several_nodes() {
    with_lab(3, |lab| {
        let certs = lab.folder().join("certs");
        let n2 = format!("n2=tcp://{}:2376", lab.address("n2"));
        let n3 = serve_ssh(lab, "n3");
        let flags = [
            "--engine",
            "docker",
            "--docker-host",
            "n1=unix:///run/docker.sock",
            "--docker-host",
            &n2,
            "--docker-host",
            &n3,
            "--docker-certs",
            certs.to_str().unwrap(),
        ];
        let daemon = LabDaemon::start(lab, "n1", &flags);
        let nodes = daemon.json(&["node", "ls", "--format", "json"]);
        let states: Vec<&str> = nodes.as_array().unwrap().iter().map(|node| node["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["ready", "ready", "ready"]);
        daemon.ok(&["service", "create", "--name", "web", "--replicas", "6", "-p", "8080:8080", "demo:1"]);
        let on = |node: &str| {
            daemon.live("web").iter().filter(|task| task["node"] == node && task["state"] == "running").count()
        };
        assert_eq!([on("n1"), on("n2"), on("n3")], [2, 2, 2]);
        let url = format!("http://{}:8080/", lab.address("n1"));
        let hosts = || {
            let answers = (0..24).map(|_| String::from_utf8_lossy(&curl(&url).stdout).into_owned());
            answers.filter_map(|text| Some(text.split('"').nth(3)?.to_owned())).collect::<BTreeSet<String>>()
        };
        assert_eq!(hosts().len(), 6, "replicas on other hosts answer as well");

        // A host that is lost: its replicas run elsewhere; back again, nothing runs twice.
        lab.ok(&["cut", "n3"]);
        eventually("all run on the two others", 40, || {
            (on("n1") + on("n2") == 6 && daemon.live("web").len() == 6).then_some(())
        });
        let left = lab.docker("n3", &["ps", "-q"]);
        assert_eq!(left.lines().count(), 2, "they run on behind the cut");
        lab.ok(&["mend", "n3"]);
        eventually("the surplus is gone", 40, || lab.docker("n3", &["ps", "-q"]).is_empty().then_some(()));
        assert_eq!(daemon.live("web").len(), 6);

        // Drained and active again.
        daemon.ok(&["node", "update", "n2", "--availability", "drain"]);
        eventually("n2 is empty", 40, || {
            let running = on("n1") + on("n3") == 6;
            (running && lab.docker("n2", &["ps", "-q"]).is_empty()).then_some(())
        });
    });
}

#[test]
fn images_come_from_a_registry_that_wants_a_password() {
    with_lab(1, |lab| {
        let registry = Registry::start(lab);
        let image = format!("{}/demo:1", registry.address);
        let config = format!("DOCKER_CONFIG={}", registry.folder.path().join("docker").display());
        let docker = |line: &str| lab.run("n1", &["env", &config, "sh", "-c", line]);
        docker(&format!("echo secret | docker login -u neap --password-stdin {}", registry.address));
        docker(&format!("docker tag demo:1 {image} && docker push -q {image} && docker rmi {image}"));

        // Without credentials: said, and tried again.
        let daemon = LabDaemon::start(lab, "n1", &["--engine", "docker"]);
        daemon.ok(&["service", "create", "--detach", "--name", "web", &image]);
        daemon.task_that("web", "is refused", |task| {
            task["state"] == "rejected" && task["reason"].to_string().contains("no basic auth credentials")
        });
        // The cluster logs in, with what the registry takes alone.
        let words = ["registry", "login", &registry.address, "-u", "neap", "--password-stdin"];
        let wrong = daemon.with_input(&words, "hunter2\n");
        let why = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(wrong.status.code() == Some(8) && why.contains("does not take it"), "{wrong:?}");
        assert!(!why.contains("hunter2"), "{why}");
        let right = daemon.with_input(&words, "secret\n");
        let told = String::from_utf8_lossy(&right.stdout).into_owned();
        assert!(told.contains(&format!("logged in at {} as neap", registry.address)), "{right:?}");
        daemon.task_that("web", "runs", |task| task["state"] == "running");
        let logins = daemon.ok(&["registry", "logins", "--format", "json"]);
        assert!(logins.contains(&registry.address) && logins.contains("\"verified\": true"), "{logins}");
        assert!(!logins.contains("secret"), "{logins}");
        let token = registry.folder.path().join("token");
        std::fs::write(&token, "secret\n").unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/registry.lua");
        let told = daemon.ok(&["run", script, &registry.address, "neap", token.to_str().unwrap()]);
        assert_eq!(told.trim(), format!("{}: neap", registry.address));

        // Pulled anew before each start, and the image that is there serves while the registry is away.
        daemon.ok(&["service", "update", "web", "--pull", "always", "--env", "A=1", "--update-monitor", "100ms"]);
        let address = registry.address.clone();
        drop(registry);
        daemon.ok(&["service", "update", "web", "--env", "A=2", "--update-monitor", "100ms"]);
        assert_eq!(daemon.live("web").len(), 1);

        daemon.ok(&["registry", "logout", &address]);
        assert!(daemon.fails(&["registry", "logout", &address]).contains("registry logins"));
        // Nobody there to be asked: said, unless nobody is to be asked.
        let words = ["registry", "login", &address, "-u", "neap", "--password-stdin", "--unverified"];
        let why = daemon.with_input(&words[..6], "secret\n");
        assert_eq!(why.status.code(), Some(7), "{why:?}");
        let kept = daemon.with_input(&words, "secret\n");
        assert!(String::from_utf8_lossy(&kept.stdout).contains("nobody asked it"), "{kept:?}");
    });
}
