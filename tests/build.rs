//! Images that are built from files: what is in them, that they are the same each time, and that a real Docker Engine runs them.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use lab::{Lab, LabDaemon};
use oci::{Registry, digest, noise};
use serde_json::{Value, json};

fn unpacked(registry: &Registry, repository: &str, digest: &str) -> Vec<u8> {
    let packed = registry.get(&format!("/v2/{repository}/blobs/{digest}")).is(200).body;
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*packed).read_to_end(&mut plain).unwrap();
    plain
}

// What a layer has: kind, mode, owner and what is in it or where it leads, by name.
fn entries(registry: &Registry, repository: &str, layer: &Value) -> BTreeMap<String, String> {
    let plain = unpacked(registry, repository, layer["digest"].as_str().unwrap());
    let mut archive = tar::Archive::new(&*plain);
    let mut all = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().to_vec()).unwrap();
        let header = entry.header();
        let about = format!("{:o} {}:{}", header.mode().unwrap(), header.uid().unwrap(), header.gid().unwrap());
        let kind = header.entry_type();
        let (link, size) = (entry.link_name().unwrap().map(|link| link.display().to_string()), entry.size());
        let mut text = Vec::new();
        let rest = match link {
            Some(link) => format!("-> {link}"),
            None if kind.is_dir() => "folder".into(),
            None if size > 100 => format!("{size} bytes"),
            None => {
                entry.read_to_end(&mut text).unwrap();
                String::from_utf8_lossy(&text).into_owned()
            }
        };
        assert!(all.insert(name.clone(), format!("{about} {rest}")).is_none(), "{name} is there twice");
    }
    all
}

fn manifest(registry: &Registry, repository: &str, reference: &str) -> Value {
    registry.get(&format!("/v2/{repository}/manifests/{reference}")).is(200).json()
}

fn config(registry: &Registry, repository: &str, manifest: &Value) -> Value {
    let digest = manifest["config"]["digest"].as_str().unwrap();
    registry.get(&format!("/v2/{repository}/blobs/{digest}")).is(200).json()
}

fn write(path: &Path, text: &[u8], mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

// A root as Debian's: /bin leads to /usr/bin, /tmp is everybody's.
fn root(path: &Path) {
    let mut tar =
        tar::Builder::new(flate2::write::GzEncoder::new(std::fs::File::create(path).unwrap(), Default::default()));
    let mut put = |name: &str, kind: tar::EntryType, mode: u32, owner: u64, data: &[u8], link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_700_000_000);
        header.set_username("somebody").unwrap();
        header.set_size(data.len() as u64);
        match kind {
            tar::EntryType::Symlink | tar::EntryType::Link => tar.append_link(&mut header, name, link).unwrap(),
            _ => tar.append_data(&mut header, name, data).unwrap(),
        }
    };
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    put("./usr/", Directory, 0o755, 0, b"", "");
    put("./usr/bin/", Directory, 0o755, 0, b"", "");
    put("./bin", Symlink, 0o777, 0, b"", "usr/bin");
    let busybox = std::fs::read("/bin/busybox").unwrap_or_else(|_| b"none".to_vec());
    put("./usr/bin/busybox", Regular, 0o4755, 0, &busybox, "");
    put("./usr/bin/sh", Link, 0o4755, 0, b"", "./usr/bin/busybox");
    put("./tmp/", Directory, 0o1777, 0, b"", "");
    put("./home/me/", Directory, 0o700, 1000, b"", "");
    put("./etc/passwd", Regular, 0o644, 0, b"root:x:0:0::/:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n", "");
    tar.into_inner().unwrap().finish().unwrap();
}

#[test]
fn an_image_is_what_its_files_are() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    root(&at("root.tgz"));
    write(&at("dist/bin/app"), b"#!/bin/sh\necho app\n", 0o700);
    write(&at("dist/tmp/note"), b"note", 0o600);
    write(&at("dist/docs/readme.md"), b"readme", 0o666);
    write(&at("dist/docs/left.out"), b"left", 0o666);
    write(&at("large"), &noise(9, 9_000_000), 0o644);
    symlink("../docs/readme.md", at("dist/bin/link")).unwrap();
    let build = |args: &[&str]| registry.daemon.json(&[&["registry", "build", "--format", "json"], args].concat());

    // From nothing: an archive as it is.
    let tar = format!("{}:/", text("root.tgz"));
    let base = build(&["base/root:1", "--tar", &tar, "--label", "a=b", "--", "/bin/sh", "-c", "echo base"]);
    assert_eq!((&base["layers"], &base["tag"], &base["repository"]), (&json!(1), &json!("1"), &json!("base/root")));
    let of_base = manifest(&registry, "base/root", "1");
    assert_eq!(
        base["image"],
        json!(format!("127.0.0.1:{}/base/root@{}", registry.port, base["digest"].as_str().unwrap()))
    );
    let in_base = entries(&registry, "base/root", &of_base["layers"][0]);
    assert_eq!(in_base["usr/bin/sh"], "4755 0:0 -> usr/bin/busybox");
    assert_eq!(in_base["bin"], "777 0:0 -> usr/bin");
    assert_eq!((&*in_base["tmp/"], &*in_base["home/me/"]), ("1777 0:0 folder", "700 1000:1000 folder"));
    assert!(in_base["home/"].starts_with("755 0:0"), "{in_base:?}");
    let run = config(&registry, "base/root", &of_base);
    assert_eq!(run["config"]["Cmd"], json!(["/bin/sh", "-c", "echo base"]));
    assert_eq!(run["created"], "1970-01-01T00:00:00Z");
    let plain = unpacked(&registry, "base/root", of_base["layers"][0]["digest"].as_str().unwrap());
    assert_eq!(run["rootfs"]["diff_ids"], json!([digest(&plain)]));

    // Upon it: folders that are there stay as they are, and what is behind a link lands there.
    let (dist, large) = (format!("{}:/", text("dist")), format!("{}:/home/me/", text("large")));
    let args = [
        "shop/api:1.0",
        "--from",
        "base/root:1",
        "--copy",
        &dist,
        "--copy",
        &large,
        "--exclude",
        "*.out",
        "--env",
        "A=1",
        "--env",
        "PATH=/bin",
        "--entrypoint",
        "/bin/app 'two words'",
        "--user",
        "me",
        "--workdir",
        "/home/me",
        "--expose",
        "8080",
        "--expose",
        "53/udp",
        "--volume",
        "/data",
        "--stop-signal",
        "SIGINT",
        "--timestamp",
        "86400",
    ];
    let built = build(&args);
    let of = manifest(&registry, "shop/api", "1.0");
    assert_eq!((of["layers"].as_array().unwrap().len(), &of["layers"][0]), (3, &of_base["layers"][0]));
    assert_eq!(of["annotations"]["org.opencontainers.image.base.digest"], base["digest"]);
    let within = entries(&registry, "shop/api", &of["layers"][1]);
    let names: Vec<&str> = within.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["docs/", "docs/readme.md", "tmp/", "tmp/note", "usr/", "usr/bin/", "usr/bin/app", "usr/bin/link"]
    );
    assert_eq!((&*within["tmp/"], &*within["docs/"]), ("1777 0:0 folder", "755 0:0 folder"));
    assert_eq!(
        (&*within["usr/bin/app"], &*within["docs/readme.md"]),
        ("755 0:0 #!/bin/sh\necho app\n", "644 0:0 readme")
    );
    assert_eq!(within["usr/bin/link"], "777 0:0 -> ../docs/readme.md");
    let above = entries(&registry, "shop/api", &of["layers"][2]);
    assert_eq!(above["home/me/"], "700 1000:1000 folder");
    assert_eq!(above["home/me/large"], "644 0:0 9000000 bytes");
    let run = config(&registry, "shop/api", &of);
    let expected = json!({ "Env": ["A=1", "PATH=/bin"], "Entrypoint": ["/bin/app", "two words"], "User": "me", "WorkingDir": "/home/me",
        "ExposedPorts": { "8080/tcp": {}, "53/udp": {} }, "Volumes": { "/data": {} }, "StopSignal": "SIGINT", "Labels": { "a": "b" } });
    assert_eq!(run["config"], expected);
    assert_eq!((&run["created"], run["history"].as_array().unwrap().len()), (&json!("1970-01-02T00:00:00Z"), 3));
    assert_eq!(run["history"][1]["created_by"], "neap build: /");

    // Again, by other clocks, other modes and another way of writing things down: byte for byte the same.
    write(&at("dist/tmp/note"), b"note", 0o640);
    let again = build(&args);
    assert_eq!(again["digest"], built["digest"]);
    let other = Registry::start();
    let there = format!("http://127.0.0.1:{}/base/root:1", registry.port);
    let said = other.daemon.ok(&[
        "registry",
        "build",
        "base/root:1",
        "--tar",
        &tar,
        "--label",
        "a=b",
        "--",
        "/bin/sh",
        "-c",
        "echo base",
    ]);
    assert!(said.contains(base["digest"].as_str().unwrap()) && said.contains("1 layers"), "{said}");
    // From another registry: the same but for what it says of where it comes from.
    let mut moved = args;
    moved[2] = &there;
    let moved = other.daemon.json(&[&["registry", "build", "--format", "json"][..], &moved].concat());
    let of_moved = manifest(&other, "shop/api", "1.0");
    assert_eq!((&of_moved["layers"], &of_moved["config"]), (&of["layers"], &of["config"]));
    assert_eq!(of_moved["annotations"]["org.opencontainers.image.base.name"], json!(there));
    assert_ne!(moved["digest"], built["digest"]);
    // Only how it is run: no layer of its own.
    let only = build(&["shop/only:1", "--from", "shop/api:1.0", "--env", "A=2", "--", "x"]);
    let of_only = manifest(&registry, "shop/only", "1");
    assert_eq!((&only["layers"], &of_only["layers"]), (&json!(3), &of["layers"]));
    let run = config(&registry, "shop/only", &of_only);
    assert_eq!((&run["config"]["Env"], &run["config"]["Cmd"]), (&json!(["A=2", "PATH=/bin"]), &json!(["x"])));

    assert!(registry.daemon.log().contains("event=\"image.pushed\" subject=\"shop/api:1.0\""));
}

#[test]
fn what_cannot_be_built_says_why() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    root(&folder.path().join("root.tgz"));
    write(&folder.path().join("app"), b"app", 0o755);
    let daemon = &registry.daemon;
    daemon.ok(&["registry", "build", "base:1", "--platform", "linux/arm64", "--tar", &format!("{}:/", at("root.tgz"))]);
    let app = format!("{}:/x", at("app"));
    let fails = |args: &[&str], why: &str| {
        let (_, said) = daemon.fails(&[&["registry", "build"], args].concat());
        assert!(said.contains(why), "{args:?}: {said}");
    };
    fails(&["shop:1"], "at least one");
    fails(&["shop:1", "--copy", "nothing"], "what goes where");
    fails(&["shop:1", "--copy", "/no/such/file:/x"], "/no/such/file");
    fails(&["shop:1", "--from", "none:1", "--copy", &app], "no manifest 1");
    fails(&["shop:1", "--from", "base:1", "--platform", "linux/amd64", "--copy", &app], "is for linux/arm64");
    fails(&["shop:1", "--platform", "linux", "--copy", &app], "platform \"linux\" is none");
    fails(&["docker.io/library/x:1", "--copy", &app], "cluster's own registry");
    fails(&["Shop:1", "--copy", &app], "has a name that is none");
    let by_digest = format!("shop@{}", digest(b"x"));
    fails(&[&by_digest, "--copy", &app], "needs a tag");
    fails(&["shop:1", "--from", "base:1", "--copy", &format!("{}:/tmp", at("app"))], "is a folder of the image");
    fails(&["shop:1", "--copy", "/dev/null:/x"], "neither a file nor a folder");
    fails(&["shop:1", "--copy", &app, "--expose", "http"], "no port to expose");
    fails(&["shop:1", "--copy", &app, "--chown", "me"], "none by number");
    fails(&["shop:1", "--copy", &app, "--chmod", "rwx"], "none, such as");
    fails(&["shop:1", "--tar", &app], "tar archive");
    // The tag is immutable, or the repository another's: nothing of it is changed.
    daemon.ok(&["registry", "rule", "set", "shop", "--immutable", "v*"]);
    let first = daemon.json(&["registry", "build", "shop:v1", "--copy", &app, "--format", "json"]);
    fails(&["shop:v1", "--copy", &app, "--chmod", "0600"], "immutable");
    assert_eq!(manifest(&registry, "shop", "v1")["layers"].as_array().unwrap().len(), 1);
    daemon.ok(&["registry", "cache", "set", "hub", "docker.io"]);
    fails(&["hub/x:1", "--copy", &app], "is a copy of");
    assert_eq!(digest(&registry.get("/v2/shop/manifests/v1").is(200).body), first["digest"].as_str().unwrap());
}

#[test]
fn scripts_build_images() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("site/index.html"), b"hello", 0o644);
    write(&folder.path().join("site/draft.txt"), b"draft", 0o644);
    let script = r#"
        local built = registry.build {
          image = "shop/site:1",
          copy = {
            { ["/www"] = { path = "site", exclude = { "draft*" }, owner = "33" } },
            { ["/etc/site.json"] = { text = json.encode { level = 3 }, mode = "0600" }, ["/raw"] = { text = "\0\255" } },
          },
          env = { PORT = 8080 }, command = "serve /www", expose = { 8080 }, timestamp = 5,
        }
        assert(built.layers == 2 and built.image:find("shop/site@" .. built.digest, 1, true))
        assert(registry.inspect("shop/site:1").config.config.Env[1] == "PORT=8080")
        print(built.digest)
        for _, bad in {
          { image = "x", copies = {} },
          { image = "x", copy = { ["/a"] = { path = "site", text = "b" } } },
          { image = "x", copy = { ["/a"] = { txt = "b" } } },
          { image = "x", copy = { ["/a/"] = { text = "b" } } },
          { image = "x", copy = "site" },
        } do
          local fine, why = pcall(registry.build, bad)
          print(fine, (tostring(why):match("[^\n]*")))
        end
    "#;
    std::fs::write(folder.path().join("build.lua"), script).unwrap();
    let file = folder.path().join("build.lua").display().to_string();
    let said = registry.daemon.ok(&["run", &file]);
    let lines: Vec<&str> = said.lines().collect();
    let of = manifest(&registry, "shop/site", "1");
    let (first, second) =
        (entries(&registry, "shop/site", &of["layers"][0]), entries(&registry, "shop/site", &of["layers"][1]));
    assert_eq!(first.keys().collect::<Vec<_>>(), ["www/", "www/index.html"]);
    assert_eq!((&*first["www/"], &*first["www/index.html"]), ("755 33:33 folder", "644 33:33 hello"));
    assert_eq!(second["etc/site.json"], "600 0:0 {\"level\":3}");
    let run = config(&registry, "shop/site", &of);
    assert_eq!(run["config"]["Cmd"], json!(["/bin/sh", "-c", "serve /www"]));
    for (line, why) in lines[1..].iter().zip(["copies", "one of path, text and tar", "txt", "is a folder", "copy"]) {
        assert!(line.starts_with("false") && line.contains(why), "{line}");
    }
    assert_eq!(lines.len(), 6, "{said}");

    // One in the daemon has texts, and no files.
    let hosted = r#"
        cron "nightly" { schedule = "0 0 1 1 *", run = function()
          print(registry.build { image = "shop/conf:1", copy = { ["/conf"] = { text = "x" } } }.layers)
          print(pcall(registry.build, { image = "shop/conf:2", copy = { ["/conf"] = "/etc/passwd" } }))
        end }
    "#;
    std::fs::write(folder.path().join("nightly.lua"), hosted).unwrap();
    registry.daemon.ok(&["script", "push", "nightly", &folder.path().join("nightly.lua").display().to_string()]);
    registry.daemon.ok(&["cron", "run", "nightly"]);
    support::eventually("the script has built it", 20, || {
        (registry.get("/v2/shop/conf/manifests/1").status == 200).then_some(())
    });
    assert_eq!(manifest(&registry, "shop/conf", "1")["layers"].as_array().unwrap().len(), 1);
    registry.get("/v2/shop/conf/manifests/2").is(404);

    // The example.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/build.lua");
    let site = folder.path().join("site").display().to_string();
    let said = registry.daemon.ok(&["run", example, "shop/pages:2", &site]);
    assert!(said.contains("shop/pages@sha256:"), "{said}");
}

#[test]
fn a_docker_engine_runs_what_was_built() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::engines(1);
    let daemon = LabDaemon::start(&lab, "n1", &[]);
    let folder = tempfile::tempdir().unwrap();
    root(&folder.path().join("root.tgz"));
    write(
        &folder.path().join("bin/app"),
        b"#!/bin/sh\necho hello from $(id -u) $WHO\nls -ld /tmp /home/me /bin\n",
        0o755,
    );
    let text = |name: &str| folder.path().join(name).display().to_string();
    daemon.ok(&["registry", "build", "base:1", "--tar", &format!("{}:/", text("root.tgz")), "--env", "PATH=/bin"]);
    let (bin, app) = (format!("{}:/bin", text("bin")), format!("{}:/tmp/deep/er/", text("bin/app")));
    let args = ["shop/app:1", "--from", "base:1", "--copy", &bin, "--copy", &app, "--env", "WHO=me", "--user", "me"];
    daemon.ok(&[&["registry", "build"], &args[..], &["--entrypoint", "app"]].concat());
    let image = "127.0.0.1:5000/shop/app:1";
    // Its shell finds its own commands by their name alone.
    lab.docker("n1", &["pull", image]);
    let said = lab.docker(
        "n1",
        &[
            "run",
            "--rm",
            "--entrypoint",
            "/bin/busybox",
            image,
            "sh",
            "-c",
            "busybox ls -ld /tmp /home/me /bin /tmp/deep; /bin/app 2>/dev/null; busybox id -u",
        ],
    );
    assert!(said.contains("drwxrwxrwt") && said.contains("drwx------") && said.contains("/bin -> usr/bin"), "{said}");
    assert!(said.contains("hello from") && said.ends_with("1000"), "{said}");
    let history = lab.docker("n1", &["history", "--no-trunc", image]);
    assert!(history.contains("neap build: /bin") && history.contains("neap build: /tmp/deep/er"), "{history}");
    let inspected = lab.docker("n1", &["image", "inspect", "-f", "{{.Config.User}} {{.Config.Entrypoint}}", image]);
    assert_eq!(inspected, "me [app]");
}
