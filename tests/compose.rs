//! A Compose file of five services on a real Docker Swarm: dependencies, a secret, a config, a volume.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load};
use support::eventually;

const FILE: &str = "\
x-common: &common
  stop_grace_period: 2s
services:
  web:
    <<: *common
    image: ${WEB}
    ports: ['8080:8080']
    networks: [front, back]
    depends_on:
      api: {condition: service_healthy}
    deploy:
      replicas: 2
      update_config: {parallelism: 1, order: start-first, monitor: 200ms}
  api:
    <<: *common
    image: ${BOX}
    command: sh -c 'touch /tmp/ok; exec sleep 1000'
    networks: [back]
    environment: {LEVEL: '${LEVEL:-info}'}
    healthcheck: {test: [CMD, test, -e, /tmp/ok], interval: 300ms}
    secrets: [password]
    configs: [{source: site, target: /etc/site.conf, mode: 0440}]
    depends_on:
      db: {condition: service_started}
      migrate: {condition: service_completed_successfully}
  db:
    <<: *common
    image: ${BOX}
    command: sleep 1000
    networks: [back]
    volumes: ['data:/data']
    deploy: {placement: {constraints: [node.hostname==n2]}}
  migrate:
    <<: *common
    image: ${BOX}
    command: sh -c 'sleep 1; echo migrated >/data/done'
    restart: 'no'
    networks: [back]
    volumes: ['data:/data']
    depends_on: [db]
    deploy: {placement: {constraints: [node.hostname==n2]}}
  worker:
    <<: *common
    image: ${BOX}
    container_name: worker
    command: [sleep, '1000']
    networks: [back]
    deploy: {mode: global}
networks:
  front:
  back: {driver_opts: {encrypted: ''}}
volumes:
  data:
secrets:
  password: {file: ./password.txt}
configs:
  site: {content: \"level ${LEVEL:-info};\\n\"}
";

#[test]
fn a_stack_from_start_to_end() {
    if lab::missing().is_some() {
        return;
    }
    let lab = &Lab::up(3, 1);
    let daemon = LabDaemon::start(lab, "n1", &[]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("docker-compose.yml"), FILE).unwrap();
    std::fs::write(path("password.txt"), "hunter2").unwrap();
    let env = |level: &str, image: &str| {
        let text = format!("LEVEL={level}\nWEB={}\nBOX={}\n", lab.image(image), lab.image("busybox"));
        std::fs::write(path(".env"), text).unwrap();
    };
    env("info", "demo:1");
    let file = path("docker-compose.yml");
    let output = daemon.neap(&["stack", "deploy", "-c", &file, "shop"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains(":45: services.worker.container_name: left out"), "{told}");
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut names: Vec<&str> = listed.lines().collect();
    let at = |name: &str| names.iter().position(|known| *known == name).unwrap();
    assert!(
        at("shop-db") < at("shop-migrate") && at("shop-migrate") < at("shop-api") && at("shop-api") < at("shop-web")
    );
    names.sort_unstable();
    assert_eq!(names, ["shop-api", "shop-db", "shop-migrate", "shop-web", "shop-worker"]);
    let services = daemon.ok(&["stack", "services", "shop"]);
    let line = |name: &str| services.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{services}"));
    assert!(line("shop-migrate").contains("complete") && line("shop-web").contains("2/2"), "{services}");
    assert!(line("shop-worker").contains("3/3"), "{services}");
    assert!(daemon.ok(&["stack", "ls"]).contains("shop"));

    // What the containers got, and whom they find under the names of the file.
    let at_home = |service: &str| {
        let found =
            ["n1", "n2", "n3"].into_iter().find_map(|node| Some((node, lab.containers(node, service).pop_first()?)));
        found.unwrap_or_else(|| panic!("{service} runs nowhere"))
    };
    let (node, api) = at_home("shop-api");
    let inside = |command: &str| lab.exec_in(node, &api, command).unwrap_or_else(|| panic!("{command}"));
    assert_eq!(inside("cat /run/secrets/password /etc/site.conf; echo $LEVEL"), "hunter2level info;\ninfo");
    assert!(inside("nslookup db").matches("Address").count() >= 2);
    let (node, db) = at_home("shop-db");
    assert_eq!(lab.exec_in(node, &db, "cat /data/done").as_deref(), Some("migrated"));
    let network = lab.docker("n1", &["network", "inspect", "shop_back"]);
    assert!(network.contains("\"encrypted\""), "{network}");

    // The same again changes nothing; another tag and another level roll out what they concern, and nothing else.
    let revision = |name: &str| daemon.json(&["service", "inspect", name])["status"]["service"]["revision"].clone();
    let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
    daemon.ok(&["stack", "deploy", "-c", &file, "shop"]);
    assert_eq!((revision("shop-web"), revision("shop-api")), (1.into(), 1.into()));
    env("debug", "demo:2");
    daemon.ok(&["run", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/compose.lua"), &file, "shop"]);
    load.saw("\"version\":\"2\"");
    load.end();
    assert_eq!((revision("shop-web"), revision("shop-api"), revision("shop-db")), (2.into(), 2.into(), 1.into()));
    let (node, api) = at_home("shop-api");
    assert_eq!(lab.exec_in(node, &api, "cat /etc/site.conf").as_deref(), Some("level debug;"));

    // From standard input; a variable that is no text is none.
    let line = format!("cat '{file}' | {} stack config -c - piped", support::NEAP);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &line]).current_dir(folder.path());
    let odd: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff, 0xfe]);
    shell.env("ODD", odd);
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("piped-web"));

    // A wrong key is named before anything is done; what is left out goes with --prune.
    std::fs::write(path("bad.yml"), FILE.replace("configs: [", "confgs: [")).unwrap();
    let said = daemon.fails(&["stack", "deploy", "-c", &path("bad.yml"), "shop"]);
    assert!(said.contains("bad.yml:22: services.api.confgs: is not a known key; did you mean \"configs\"?"), "{said}");
    let less =
        FILE.split("  worker:").next().unwrap().to_owned() + "networks:" + FILE.split("\nnetworks:").nth(1).unwrap();
    std::fs::write(&file, less).unwrap();
    daemon.ok(&["stack", "deploy", "-c", &file, "--prune", "shop"]);
    eventually("the worker is gone", 20, || (!daemon.ok(&["service", "ls"]).contains("worker")).then_some(()));
    let eval = format!("local s = compose.load('{file}', {{ name = 'shop' }}) print(s.services.web.replicas)");
    assert_eq!(daemon.ok(&["repl", "--eval", &eval]).trim(), "2");
    let shown = daemon.ok(&["stack", "config", "-c", &file, "shop"]);
    assert!(shown.contains("(not shown)") && !shown.contains("hunter2"), "{shown}");

    daemon.ok(&["stack", "rm", "shop"]);
    assert!(lab.docker("n1", &["network", "ls", "-q", "-f", "label=com.docker.stack.namespace=shop"]).is_empty());
    assert!(lab.docker("n2", &["volume", "ls", "-q"]).contains("shop_data"), "volumes stay");
    assert!(daemon.fails(&["stack", "rm", "shop"]).contains("neap stack ls"));
    assert!(daemon.fails(&["repl", "--eval", "compose.remove 'shop'"]).contains("stack \"shop\""));
}
