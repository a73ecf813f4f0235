use super::*;

fn files(list: &[(&str, &str)]) -> BTreeMap<PathBuf, String> {
    list.iter().map(|(name, text)| (Path::new("/srv/shop").join(name), (*text).to_owned())).collect()
}

fn load_with(list: &[(&str, &str)], options: &Options) -> Result<Stack> {
    let all = files(list);
    let read = |path: &Path| all.get(path).cloned().ok_or_else(|| Error::not_found(format!("file {}", path.display())));
    load(&[PathBuf::from("/srv/shop/compose.yml")], options, &read)
}

fn options() -> Options {
    let variables = [("TAG", "v2"), ("HOME", "/home/me")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    Options { name: Some("shop".into()), variables: variables.into(), ..Options::default() }
}

fn service(text: &str) -> Json {
    let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
    let stack =
        load_with(&[("compose.yml", &format!("services:\n  web:\n    image: x\n{indented}"))], &options()).unwrap();
    let mut spec = stack.services["web"].clone();
    let usual = json!({ "use": "rolling", "batch": 1, "order": "stop-first", "on_failure": "pause" });
    if spec["rollout"] == usual {
        spec.as_object_mut().unwrap().remove("rollout");
    }
    for key in ["name", "image", "labels", "container_labels", "networks"] {
        spec.as_object_mut().unwrap().remove(key);
    }
    spec
}

fn check(text: &str, expected: Json) {
    assert_eq!(service(text), expected, "for {text:?}");
}

fn fails(text: &str, expected: &str) {
    let error = load_with(&[("compose.yml", text)], &options()).unwrap_err();
    assert_eq!(format!("{}: {}", error.subject, error.message), format!("/srv/shop/{expected}"), "for {text:?}");
}

#[test]
fn keys_of_a_service() {
    check(
        "command: serve --port '80 80'\nentrypoint: [/init]",
        json!({ "command": ["serve", "--port", "80 80"], "entrypoint": ["/init"] }),
    );
    check("environment: [A=1, TAG, NONE]", json!({ "env": { "A": "1", "TAG": "v2" } }));
    check("environment: {A: 1, B: yes, C: }", json!({ "env": { "A": "1", "B": "yes" } }));
    check(
        "user: '1000'\nworking_dir: /srv\nread_only: true\ninit: yes",
        json!({ "user": "1000", "workdir": "/srv", "read_only": true, "init": true }),
    );
    check(
        "dns: 10.0.0.1\ncap_add: [NET_ADMIN]\ngroup_add: [100]",
        json!({ "dns": ["10.0.0.1"], "cap_add": ["NET_ADMIN"], "groups": ["100"] }),
    );
    check("extra_hosts: ['db:10.0.0.2', 'v6=[::1]']", json!({ "hosts": { "db": "10.0.0.2", "v6": "::1" } }));
    check(
        "ulimits: {nofile: 10, nproc: {soft: 1, hard: 2}}",
        json!({ "ulimits": { "nofile": { "soft": 10, "hard": 10 }, "nproc": { "soft": 1, "hard": 2 } } }),
    );
    check(
        "stop_signal: SIGUSR1\nstop_grace_period: 1m30s",
        json!({ "stop": { "signal": "SIGUSR1", "grace": "1m30s" } }),
    );
    check(
        "logging: {driver: gelf, options: {tag: x}}",
        json!({ "log": { "driver": "gelf", "options": { "tag": "x" } } }),
    );
    check("pull_policy: if_not_present", json!({ "pull": "missing" }));
    check("restart: on-failure:3", json!({ "restart": { "condition": "on-failure", "max_attempts": 3 } }));
    check("scale: 3\nmem_limit: 1gb\ncpus: 0.5", json!({ "replicas": 3, "limits": { "memory": 1 << 30, "cpu": 0.5 } }));
    check(
        "x-neap: {policy: spread, max_replicas_per_node: 2}",
        json!({ "policy": "spread", "max_replicas_per_node": 2 }),
    );
}

#[test]
fn ports_and_checks() {
    let port = |target: u16, published: Option<u16>| match published {
        Some(published) => json!({ "target": target, "published": published }),
        None => json!({ "target": target }),
    };
    check("ports: ['8080:80']", json!({ "ports": { "http": port(80, Some(8080)) } }));
    check(
        "ports: ['80', '9000-9001:7000-7001']",
        json!({ "ports": { "p80": port(80, None), "p7000": port(7000, Some(9000)), "p7001": port(7001, Some(9001)) } }),
    );
    check(
        "ports: [{target: 80, published: '8080', name: web_ui}]",
        json!({ "ports": { "web-ui": port(80, Some(8080)) } }),
    );
    check(
        "ports: ['127.0.0.1:8080:80']",
        json!({ "ports": { "http": { "target": 80, "published": 8080, "address": "127.0.0.1" } } }),
    );
    check(
        "healthcheck: {test: [CMD, curl, -f, localhost], interval: 30s, retries: 5}",
        json!({ "check": { "exec": ["curl", "-f", "localhost"], "every": "30s", "timeout": "30s", "unhealthy": 5 } }),
    );
    let usual = json!({ "exec": ["/bin/sh", "-c", "true || exit 1"], "every": "30s", "timeout": "30s" });
    check("healthcheck: {test: true || exit 1}", json!({ "check": usual }));
    check("healthcheck: {interval: 5s}", json!({ "check": { "every": "5s" } }));
    check("healthcheck: {disable: true}", json!({ "check": false }));
}

#[test]
fn the_deploy_section() {
    check(
        "deploy:\n  replicas: 4\n  update_config: {parallelism: 2, delay: 10s, order: start-first, failure_action: rollback, monitor: 5s}\n  restart_policy: {condition: on-failure, max_attempts: 3, window: 2m}\n  placement: {constraints: [node.role==worker], preferences: [{spread: node.labels.zone}], max_replicas_per_node: 2}\n  resources: {limits: {cpus: '0.5', memory: 50M, pids: 10}, reservations: {memory: 20M}}",
        json!({
            "replicas": 4, "max_replicas_per_node": 2, "constraints": ["node.role==worker"],
            "policy": [{ "use": "spread", "over": "labels.zone" }],
            "restart": { "condition": "on-failure", "max_attempts": 3, "window": "2m" },
            "limits": { "cpu": 0.5, "memory": 50 << 20, "pids": 10 }, "reservations": { "memory": 20 << 20 },
            "rollout": { "use": "rolling", "batch": 2, "delay": "10s", "order": "start-first", "on_failure": "rollback", "min_healthy": "5s" },
        }),
    );
    check("deploy: {mode: global}", json!({ "mode": "global" }));
}

#[test]
fn what_services_share() {
    let compose = "\
services:
  web:
    image: web:${TAG:-v1}
    ports: ['80:8080']
    networks: {front: {aliases: [w]}, back: }
    depends_on: {db: {condition: service_healthy}, migrate: {condition: service_completed_successfully}}
    secrets: [password, {source: token, target: /run/secrets/api_token, uid: '7', mode: 0400}]
    configs: [{source: site, target: /etc/site.conf, mode: 0440}]
    volumes: ['data:/data:ro', './conf:/conf', '~/x:/x', {type: tmpfs, target: /tmp, tmpfs: {size: 1M}}]
  db: {image: postgres, volumes: ['data:/var/lib']}
  migrate: {image: web, restart: 'no', networks: [back], depends_on: [db], env_file: m.env}
  debug: {image: x, profiles: [debug]}
networks: {front: , back: {driver_opts: {encrypted: ''}, internal: true}, unused: }
volumes: {data: {driver: nfs, driver_opts: {share: s}}}
secrets: {password: {file: ./password.txt}, token: {external: true, name: shared/token}}
configs: {site: {content: 'listen ${TAG};'}}
";
    let list =
        [("compose.yml", compose), ("password.txt", "hunter2"), ("m.env", "A=1\nB=${TAG}\n"), (".env", "TAG=v1\n")];
    let stack = load_with(&list, &options()).unwrap();
    assert_eq!(stack.services.keys().collect::<Vec<_>>(), ["db", "migrate", "web"]);
    let web = &stack.services["web"];
    assert_eq!(web["name"], "shop-web");
    assert_eq!(web["image"], "web:v2", "the environment counts before .env");
    let networks =
        json!([{ "name": "shop_front", "aliases": ["web", "w"] }, { "name": "shop_back", "aliases": ["web"] }]);
    assert_eq!(web["networks"], networks);
    assert_eq!(
        web["secrets"],
        json!({ "password": "shop/password", "api_token": { "name": "shared/token", "uid": 7, "mode": "0400" } })
    );
    assert_eq!(web["configs"], json!({ "/etc/site.conf": { "name": "shop/site", "mode": "0440" } }));
    let volume = json!({
        "type": "volume", "source": "shop_data", "target": "/data", "read_only": true, "volume_driver": "nfs",
        "volume_options": { "share": "s" }, "volume_labels": { "com.docker.stack.namespace": "shop" },
    });
    let mounts = json!([
        volume,
        { "type": "bind", "source": "/srv/shop/conf", "target": "/conf" },
        { "type": "bind", "source": "/home/me/x", "target": "/x" },
        { "type": "tmpfs", "target": "/tmp", "tmpfs_size": 1 << 20 },
    ]);
    assert_eq!(web["mounts"], mounts);
    let need = |until| Need { until, required: true };
    let waits =
        BTreeMap::from([("db".to_owned(), need(Until::Healthy)), ("migrate".to_owned(), need(Until::Completed))]);
    assert_eq!(stack.depends_on["web"], waits);
    assert_eq!(stack.services["migrate"]["env"], json!({ "A": "1", "B": "v2" }));
    let names: Vec<&str> = stack.networks.values().map(|network| network.spec.name.as_str()).collect();
    assert_eq!(names, ["shop_back", "shop_default", "shop_front"]);
    assert!(stack.networks["back"].spec.internal && stack.networks["back"].spec.options.contains_key("encrypted"));
    assert_eq!(stack.secrets["password"].value.as_deref(), Some("hunter2"));
    assert_eq!((stack.secrets["token"].name.as_str(), &stack.secrets["token"].value), ("shared/token", &None));
    assert_eq!(stack.configs["site"].value.as_deref(), Some("listen v2;"));
    assert!(!format!("{stack:?}").contains("hunter2"));
    assert!(stack.warnings.is_empty(), "{:?}", stack.warnings);
    assert_eq!(stack.order().unwrap(), ["db", "migrate", "web"]);
}

#[test]
fn what_cannot_be_had_is_named_with_its_line() {
    fails(
        "services:\n  web:\n    image: x\n    prots: ['80:80']\n",
        "compose.yml:4: services.web.prots: is not a known key; did you mean \"ports\"?",
    );
    fails(
        "services:\n  web:\n    image: x\n    privileged: true\n",
        "compose.yml:4: services.web.privileged: is not supported",
    );
    fails("services:\n  web:\n    build: .\n", "compose.yml:3: services.web: has no image");
    fails(
        "services:\n  web:\n    image: x\n    ports:\n      - '80:80/sctp'\n",
        "compose.yml:5: services.web.ports[1] sctp: is not supported",
    );
    fails(
        "services:\n  web:\n    image: x\n    networks: [frnt]\nnetworks: {front: }\n",
        "compose.yml:4: services.web.networks: there is no network \"frnt\" under networks:; did you mean \"front\"?",
    );
    fails(
        "services:\n  web:\n    image: x\n    volumes: ['data:/x']\n",
        "compose.yml:4: services.web.volumes[1]: there is no volume \"data\" under volumes:",
    );
    fails(
        "services:\n  web:\n    image: x\n    depends_on: [db]\n",
        "compose.yml:4: services.web.depends_on: there is no service \"db\"",
    );
    fails(
        "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n",
        "compose.yml: services wait for each other: a -> b -> a",
    );
    fails(
        "services:\n  web:\n    image: ${NONE:?say which}\n",
        "compose.yml:3: needs the variable NONE, which is not set: say which",
    );
    fails(
        "services:\n  web:\n    image: x\n    deploy:\n      mode: replicated-job\n",
        "compose.yml:5: services.web.deploy.mode replicated-job: is not supported",
    );
    fails(
        "services:\n  web:\n    image: x\n    deploy:\n      replicas: many\n",
        "compose.yml:5: services.web.deploy.replicas: is \"many\", not a number that fits",
    );
    fails(
        "services:\n  web:\n    image: x\n    read_only: perhaps\n",
        "compose.yml:4: services.web.read_only: is \"perhaps\", neither true nor false",
    );
    fails(
        "services:\n  a_b: {image: x}\n  a.b: {image: x}\n",
        "compose.yml:3: services.a.b: comes to the same name as \"a_b\": \"shop-a-b\"",
    );
    fails(
        "secrets: {a: {}}\nservices: {web: {image: x}}\n",
        "compose.yml:1: secrets.a: says not whence it comes: one of external, file, environment (or content)",
    );
    fails(
        "services: {web: {image: x, hostname: h, x-neap: {replcias: 2}}}\n",
        "compose.yml:1: services.web: unknown field \"replcias\"; did you mean \"replicas\"?",
    );
    let stack = load_with(
        &[("compose.yml", "services:\n  web:\n    image: x\n    container_name: w\n    environment: {A: $NONE}\n")],
        &options(),
    )
    .unwrap();
    let left = "/srv/shop/compose.yml:4: services.web.container_name: left out: replicas have names of their own";
    let unset = "/srv/shop/compose.yml:5: variable NONE is not set; nothing stands in its place";
    assert_eq!(stack.warnings, [unset, left]);
}

#[test]
fn what_the_specification_says_where_a_file_does_not() {
    let stack = |text: &str| load_with(&[("compose.yml", text)], &options()).unwrap();
    // Whoever is waited for until its end ends.
    let shop = stack(
        "services:\n  api: {image: x, depends_on: {migrate: {condition: service_completed_successfully, required: false}}}\n  migrate: {image: x}\n",
    );
    assert_eq!(shop.services["migrate"]["restart"], json!({ "condition": "none" }));
    assert_eq!(shop.depends_on["api"]["migrate"], Need { until: Until::Completed, required: false });
    let text = serde_json::to_value(&shop.depends_on).unwrap();
    assert_eq!(text, json!({ "api": { "migrate": { "until": "completed", "required": false } } }));
    fails(
        "services:\n  api: {image: x, depends_on: {m: {condition: service_completed_successfully}}}\n  m: {image: x, restart: always}\n",
        "compose.yml:3: services.m: api waits for its end, and it is started again whenever it ends",
    );
    // An update ends the old one first, and stops where it fails.
    let update = |text: &str| {
        stack(&format!("services: {{web: {{image: x, deploy: {{{text}}}}}}}")).services["web"]["rollout"].clone()
    };
    assert_eq!(update(""), json!({ "use": "rolling", "batch": 1, "order": "stop-first", "on_failure": "pause" }));
    assert_eq!(update("update_config: {order: start-first}")["order"], "start-first");
    let text = "services: {web: {image: x, deploy: {rollback_config: {parallelism: 0, failure_action: continue}}}}";
    let back = json!({ "use": "rolling", "batch": "100%", "order": "stop-first", "on_failure": "continue" });
    assert_eq!(stack(text).services["web"]["rollback"], back);
    fails(
        "services:\n  web:\n    image: x\n    deploy: {rollback_config: {failure_action: rollback}}\n",
        "compose.yml:4: services.web.deploy.rollback_config.failure_action: \"rollback\" is not one of continue, pause",
    );
    // A variable that is empty is an empty text.
    let web = stack("services:\n  web:\n    image: x\n    environment:\n      TAG: ${NONE-}\n      HOME: ${NONE}\n");
    assert_eq!(web.services["web"]["env"], json!({ "TAG": "", "HOME": "" }));
    // Fields of Neap's own beside those of Compose; the stack stays known.
    let own = "x-neap: {labels: {team: infra}, restart: {max_delay: 1m}, rollout: canary}";
    let web = stack(&format!("services: {{web: {{image: x, restart: always, {own}}}}}")).services["web"].clone();
    assert_eq!(web["labels"], json!({ "team": "infra", NAMESPACE: "shop" }));
    assert_eq!(web["restart"], json!({ "condition": "any", "max_delay": "1m" }));
    assert_eq!(web["rollout"], "canary");
    // The host's own network, as Swarm's files have it.
    let host =
        stack("services: {web: {image: x, networks: [hostnet]}}\nnetworks: {hostnet: {external: true, name: host}}\n");
    assert_eq!(host.services["web"]["networks"], json!([{ "name": "host", "aliases": [] }]));
    fails(
        "services:\n  web:\n    image: x\n    entrypoint: []\n",
        "compose.yml:4: services.web.entrypoint that is empty: is not supported",
    );
    fails(
        "services:\n  web:\n    image: x\n    deploy:\n      placement:\n        constraints: [node.rol == x]\n",
        "compose.yml:6: services.web: constraints[1]: constraint \"node.rol == x\": has an unknown key \"node.rol\"; did you mean \"node.role\"?\n  = help: write \"node.labels.disk == ssd\" or \"node.role != manager\"",
    );
    let named = |name: Option<&str>, file: &str| {
        let read = |_: &Path| Ok("services: {web: {image: x}}".to_owned());
        let options = Options { name: name.map(str::to_owned), env_file: None, ..Options::default() };
        load(&[PathBuf::from(file)], &options, &|path: &Path| match path.extension() {
            Some(_) => read(path),
            None => Err(Error::not_found("file")),
        })
        .unwrap()
        .name
        .to_string()
    };
    assert_eq!(named(Some("My_app"), "/srv/x/f.yml"), "my-app");
    assert_eq!(named(None, "/srv/Shop_1/sub/../f.yml"), "shop-1");
}

#[test]
fn files_on_top_of_each_other() {
    let list = files(&[
        ("compose.yml", "services: {web: {image: x, environment: [A=1, B=1], ports: ['80:80']}}"),
        ("prod.yml", "services: {web: {environment: {B: 2}, ports: !override ['81:80'], deploy: {replicas: 3}}}"),
    ]);
    let read = |path: &Path| list.get(path).cloned().ok_or_else(|| Error::not_found("file"));
    let paths = ["compose.yml", "prod.yml"].map(|name| Path::new("/srv/shop").join(name));
    let stack = load(&paths, &options(), &read).unwrap();
    let web = &stack.services["web"];
    assert_eq!((&web["env"], &web["replicas"]), (&json!({ "A": "1", "B": "2" }), &json!(3)));
    assert_eq!(web["ports"], json!({ "http": { "target": 80, "published": 81 } }));
}

#[test]
fn the_stack_has_a_name_that_files_may_use() {
    let text = "name: from-${KIND}\nservices: {web: {image: 'x/${COMPOSE_PROJECT_NAME}-web'}}";
    let named = |name: Option<&str>, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let options = Options { name: name.map(str::to_owned), variables, ..Options::default() };
        let stack = load_with(&[("compose.yml", text)], &options).unwrap();
        (stack.name.to_string(), stack.services["web"]["image"].as_str().unwrap().to_owned())
    };
    let both = |name: &str| (name.to_owned(), format!("x/{name}-web"));
    assert_eq!(named(None, &[("KIND", "file")]), both("from-file"));
    assert_eq!(named(None, &[("KIND", "file"), ("COMPOSE_PROJECT_NAME", "outer")]), both("outer"));
    assert_eq!(named(Some("given"), &[("COMPOSE_PROJECT_NAME", "outer")]), both("given"));
    // Variables that cannot be read are not the same as none.
    let denied = |path: &Path| match path.file_name().and_then(|name| name.to_str()) {
        Some(".env") => Err(Error::new(Kind::Forbidden, "file .env", "cannot read it")),
        _ => Ok(text.to_owned()),
    };
    let error = load(&[PathBuf::from("/srv/shop/compose.yml")], &options(), &denied).unwrap_err();
    assert_eq!(error.kind, Kind::Forbidden);
}

#[test]
fn an_endpoint_is_balanced_where_there_is_something_to_balance() {
    let internal = |text: &str| service(text).get("internal").cloned();
    let ports = "ports:\n  - \"80:8080\"\n";
    assert_eq!(internal(&format!("{ports}deploy:\n  endpoint_mode: vip")), Some(json!("balanced")));
    assert_eq!(internal(&format!("{ports}deploy:\n  endpoint_mode: dnsrr")), Some(json!("direct")));
    assert_eq!(internal(ports), None);
    assert_eq!(internal("deploy:\n  endpoint_mode: vip"), None);
    assert_eq!(
        internal("deploy:\n  endpoint_mode: vip\nx-neap:\n  ports:\n    http: {target: 8080}"),
        Some(json!("balanced"))
    );
    assert_eq!(internal(&format!("{ports}deploy:\n  endpoint_mode: vip\nx-neap:\n  engine_native: true")), None);
    fails(
        "services:\n  web:\n    image: x\n    deploy:\n      endpoint_mode: lvs\n",
        "compose.yml:5: services.web.deploy.endpoint_mode: \"lvs\" is neither vip nor dnsrr",
    );
}
