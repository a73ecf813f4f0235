//! The simulation: our own scripts are tested on it, it repeats itself by its seed, and `neap test` says what is wrong.

use std::path::Path;
use std::process::{Command, Output};

use neap::client::Apply;
use neap::model::event::Event;
use neap::script::api::test::Setup;

const NEAP: &str = env!("CARGO_BIN_EXE_neap");

fn neap_test(folder: &Path, args: &[&str]) -> Output {
    Command::new(NEAP).arg("test").args(args).current_dir(folder).env("NEAP_CONFIG", "/dev/null").output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

// A file of tests, and what running it says.
fn check(source: &str, args: &[&str], code: i32, expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a_test.lua"), source).unwrap();
    let output = neap_test(folder.path(), &[&["a_test.lua"], args].concat());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{source}\n{said}");
    for part in expected {
        assert!(said.contains(part), "{part:?} is not said of {source}\n{said}");
    }
}

#[test]
fn our_own_scripts_pass_their_tests() {
    let output = neap_test(Path::new(env!("CARGO_MANIFEST_DIR")), &["tests/scripts", "scripts"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for file in ["binpack_test", "rollouts_test", "spread_test", "quickstart_test", "maintenance_test"] {
        assert!(said.contains(file), "{file} is not run: {said}");
    }
    let passed: usize = said.lines().last().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap();
    assert!(passed >= 19, "{said}");
}

// A busy hour: services that come, change, fail and go, cron scripts and handlers.
fn history(seed: u64) -> Vec<Event> {
    let setup = neap::model::strict::read::<Setup>(
        "setup",
        &serde_json::json!({
            "nodes": 20,
            "programs": {
                "crashes": { "exit_after": "40s", "exit_code": 2 },
                "v3": { "healthy": false },
                "slow": { "start": "10s", "ready": "5s" },
            },
        }),
    )
    .unwrap();
    let work = async move {
        let stage = neap::sim::start(&setup, seed).await.unwrap();
        let bundle = neap::model::bundle::Bundle {
            entries: vec!["a.lua".into()],
            files: std::collections::BTreeMap::from([(
                "a.lua".to_owned(),
                r#"
                cron "count" { schedule = "*/5 * * * *", run = function()
                  kv.set("count", #services.list() + math.random(1000))
                end }
                on "task.failed" { name = "note", run = function(event) kv.set("failed/" .. event.task, event.at) end }
                policy "mine" {
                  score = function(node, task, view) return -view:count { service = task.service, node = true } - node.tasks / 100 end,
                }
                -- Now and then it takes longer than it may: counted in steps, so that no machine decides that.
                check "labours" { every = "1m", timeout = "2s", unhealthy = 2, run = function(task)
                  local sum = 0
                  for n = 1, math.random(900000, 1010000) do sum += n end
                  return http.get("http://" .. task:address "http" .. "/").status == 200
                end }
                rollout "mine" { step = function(release)
                  if release.remaining == 0 then return release:promote() end
                  return release:batch { tasks = 2, min_healthy = "10s" }
                end }
                "#
                .to_owned(),
            )]),
        };
        let push = neap::client::scripts::Push { bundle, check_only: false };
        stage.cluster.push_scripts("rules", push, "test").await.unwrap();
        let apply = |service: serde_json::Value| Apply { service, ..Apply::default() };
        for number in 0..10 {
            let command = ["v1", "crashes", "slow"][number % 3];
            let service = serde_json::json!({
                "name": format!("s{number}"), "command": [command], "replicas": 3 + number,
                "ports": { "http": format!("{}", 8000 + number) }, "check": { "http": "/", "every": "2s" },
                "policy": if number % 2 == 0 { "mine" } else { "spread" },
                "rollout": if number == 2 { "mine" } else { "rolling" },
            });
            stage.cluster.apply(apply(service)).await.unwrap();
        }
        let labours = serde_json::json!({
            "name": "labours", "command": ["v1"], "replicas": 2, "ports": { "http": {} }, "check": "labours",
        });
        stage.cluster.apply(apply(labours)).await.unwrap();
        let minutes = |count: u64| tokio::time::sleep(std::time::Duration::from_secs(60 * count));
        minutes(10).await;
        for (name, command) in [("s0", "v2"), ("s3", "v3"), ("s2", "v2")] {
            let change = serde_json::json!({ "name": name, "command": [command] });
            let ask = Apply { only: neap::client::Only::Update, ..apply(change) };
            stage.cluster.apply(ask).await.unwrap();
        }
        minutes(20).await;
        stage.cluster.remove("s4").await.unwrap();
        stage.cluster.scale("s1", 40).await.unwrap();
        minutes(30).await;
        let events = stage.history.events();
        events.clone()
    };
    neap::sim::alone(work).unwrap()
}

#[test]
fn what_came_along_goes_with_its_service() {
    use neap::model::registry::{Credentials, Password};
    use neap::store::{MemoryStore, Store};
    let setup = neap::model::strict::read::<Setup>("setup", &serde_json::json!({ "nodes": 1 })).unwrap();
    let work = async {
        let store = std::sync::Arc::new(MemoryStore::new());
        let stage = neap::sim::start_on(&setup, 1, store.clone()).await.unwrap();
        let lent = || store.list("lent/").unwrap();
        let apply = async |image: &str, password: &str| {
            let auth = Credentials { username: "me".into(), password: Password(password.into()) };
            let service = serde_json::json!({ "name": "web", "image": image });
            stage.cluster.apply(Apply { service, auth: Some(auth), ..Apply::default() }).await.unwrap();
        };
        apply("r.example/web:1", "hunter2").await;
        assert!(lent().len() == 1 && lent()[0].key.ends_with("/r.example"), "{:?}", lent());
        assert!(!String::from_utf8_lossy(&lent()[0].value).contains("hunter2"), "it is sealed");
        // Another one takes its place, with the same description or another registry's image.
        let before = lent()[0].version;
        apply("r.example/web:1", "hunter3").await;
        assert!(lent().len() == 1 && lent()[0].version > before);
        apply("other.example/web:1", "hunter2").await;
        assert!(lent().len() == 1 && lent()[0].key.ends_with("/other.example"), "{:?}", lent());
        assert_eq!(stage.cluster.logins().await.unwrap()[0].service.as_deref(), Some("web"));
        stage.cluster.remove("web").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert!(stage.cluster.services().await.unwrap().is_empty() && lent().is_empty(), "{:?}", lent());
    };
    neap::sim::alone(work).unwrap();
}

#[test]
fn the_same_seed_gives_the_same_history_to_the_byte() {
    let shown = |seed: u64| serde_json::to_string(&history(seed)).unwrap();
    let (first, again, other) = (shown(7), shown(7), shown(8));
    assert!(first.len() > 100_000, "an hour of a busy cluster says more than {} bytes", first.len());
    let differ = first.bytes().zip(again.bytes()).position(|(a, b)| a != b);
    if let Some(at) = differ {
        let around = |text: &str| text[at.saturating_sub(300)..(at + 300).min(text.len())].to_owned();
        panic!("differs at {at}:\n{}\n{}", around(&first), around(&again));
    }
    assert_eq!(first.len(), again.len());
    assert!(first != other, "another seed is another history");
}

#[test]
fn a_test_that_fails_says_where_and_what_was_printed() {
    check(
        "test('adds up', function(t)\n  print('so far', t.name)\n  assert(1 + 1 == 3, 'no')\nend)",
        &[],
        1,
        &[
            "FAILED  adds up",
            "| so far\tadds up",
            "no\n",
            "a_test.lua:3",
            "assert(1 + 1 == 3",
            "seed: 1",
            "0 passed, 1 failed",
        ],
    );
    check(
        "test('a', function() service('x') { comand = 'y' } end)\ntest('b', function() end)",
        &[],
        1,
        &["did you mean \"command\"?", "ok      b", "1 passed, 1 failed"],
    );
}

#[test]
fn mistakes_in_a_file_of_tests_are_said_where_they_stand() {
    let wrong = [
        ("test 'a' { }", "run is missing"),
        ("test 'a' { node = 3, run = print }", "did you mean \"nodes\"?"),
        (
            "test 'a' { nodes = { { cpus = 3 } }, run = print }",
            "nodes: [1]: unknown field \"cpus\"; did you mean \"cpu\"?",
        ),
        ("test 'a' { nodes = 0, run = print }", "0 is not between 1 and 100000"),
        ("test 'a' { nodes = { {}, {} }, run = print }", "two of them are called \"n\""),
        ("test 'a' { starts = 'soon', run = print }", "is no moment"),
        ("test 'a' { programs = { x = { healty = true } }, run = print }", "did you mean \"healthy\"?"),
        ("test('a', function() end)\ntest('a', function() end)", "is there twice; the first stands in line 1"),
        ("local x = 1\ntest 'a'", "test \"a\": in line 2 has nothing that it does"),
        ("test 'a'\ntest 'b' { run = function() end }", "test \"a\": in line 1 has nothing"),
        ("policy 'p' { score = print }", "policy belongs in a hosted script"),
        ("service('x') { command = 'y' }:apply()", "tests: not found"),
        ("test(", "a_test.lua:1"),
    ];
    for (source, expected) in wrong {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a_test.lua"), source).unwrap();
        let output = neap_test(folder.path(), &["a_test.lua"]);
        let said = text(&output);
        assert!(!output.status.success() && said.contains(expected), "{source}: {expected}: {said}");
    }
}

#[test]
fn mistakes_inside_a_test_are_said_as_well() {
    for (call, expected) in [
        ("t.clok:now()", "t has no field \"clok\"; did you mean \"clock\"?"),
        ("t.clock:advance 'soon'", "soon"),
        ("t.cluster:kill 'web.1'", "task \"web.1\": not found"),
        ("t.cluster:events 'task.faild'", "did you mean \"task.failed\"?"),
        ("t.cluster:program('x', { stat = 1 })", "did you mean \"start\"?"),
        ("http.load { url = 'http://localhost/' }", "measures a real network"),
        ("http.get 'http://example.org/'", "only replicas, published ports and routes answer"),
    ] {
        check(&format!("test('x', function(t) {call} end)"), &[], 1, &[expected]);
    }
}

#[test]
fn what_never_ends_is_ended() {
    let both = "test('loops', function() while true do end end)\n\
        test('waits', function() events.wait {} end)\n\
        test('is well', function() end)";
    check(
        both,
        &["--timeout", "300ms"],
        1,
        &["FAILED  loops", "FAILED  waits", "ok      is well", "1 passed, 2 failed"],
    );
}

#[test]
fn tests_are_chosen_listed_seeded_and_reported_for_machines() {
    let source =
        "test('one', function(t) print(t.seed) end)\ntest 'two' { seed = 5, run = function(t) print(t.seed) end }";
    check(source, &["--filter", "tw", "--verbose"], 0, &["| 5", "1 passed, 0 failed"]);
    check(source, &["--seed", "9", "--verbose"], 0, &["| 9", "2 passed, 0 failed"]);
    check(source, &["--list"], 0, &["  one\n  two\n"]);
    check(source, &["--filter", "three"], 4, &["tests: not found"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a_test.lua"), format!("{source}\ntest('bad', function() error 'x' end)"))
        .unwrap();
    std::fs::write(folder.path().join("rules.lua"), "policy 'p' { score = function() return 1 end }").unwrap();
    let output = neap_test(folder.path(), &[".", "--format", "json"]);
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.as_array().map(Vec::len), Some(3));
    assert_eq!((&rows[1]["test"], &rows[1]["result"], &rows[1]["seed"]), (&"two".into(), &"passed".into(), &5.into()));
    assert_eq!((&rows[2]["result"], &rows[2]["error"]["kind"]), (&"failed".into(), &"script".into()));
    assert_eq!(output.status.code(), Some(1));
    let empty = tempfile::tempdir().unwrap();
    let output = neap_test(empty.path(), &["."]);
    assert!(output.status.code() == Some(4) && text(&output).contains("_test.lua"), "{}", text(&output));
    assert_eq!(neap_test(empty.path(), &["nothing.lua"]).status.code(), Some(4));
}

#[test]
fn a_broken_file_keeps_no_other_from_being_run() {
    let folder = tempfile::tempdir().unwrap();
    for (name, source) in [("a", "test('a', function() end)"), ("b", "test("), ("c", "test('c', function() end)")] {
        std::fs::write(folder.path().join(format!("{name}_test.lua")), source).unwrap();
    }
    std::fs::create_dir(folder.path().join(".git")).unwrap();
    std::fs::write(folder.path().join(".git/x_test.lua"), "test('x', function() end)").unwrap();
    let output = neap_test(folder.path(), &[".", "a_test.lua", "./a_test.lua"]);
    let said = text(&output);
    assert!(output.status.code() == Some(1) && said.contains("2 passed, 1 failed"), "{said}");
    assert!(said.contains("FAILED  the file itself") && said.contains("b_test.lua:1"), "{said}");
}

#[test]
fn each_seed_has_its_own_numbers() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a_test.lua"), "test('n', function() print(math.random(1, 2^30)) end)").unwrap();
    let numbers: std::collections::BTreeSet<String> = (1..=20)
        .map(|seed| text(&neap_test(folder.path(), &["a_test.lua", "--verbose", "--seed", &seed.to_string()])))
        .map(|said| said.lines().find(|line| line.contains('|')).unwrap().to_owned())
        .collect();
    assert_eq!(numbers.len(), 20, "{numbers:?}");
}

#[test]
fn commands_run_while_the_clock_stands_still() {
    let source = "test('sh', function(t)\n  local before = t.clock:now()\n  assert(sh('sleep 0.05; echo hi').stdout == 'hi\\n')\n  \
        assert(not pcall(sh, 'exit 3') and t.clock:now() == before)\nend)";
    check(source, &[], 0, &["1 passed, 0 failed"]);
}

#[test]
fn many_services_many_events_and_no_port_left() {
    let many = "test 'many' { nodes = 100, run = function(t)
      for n = 1, 100 do service('s' .. n) { command = 'x', constraints = { 'node.labels.go==yes' }, replicas = 20 }:apply() end
      assert(#t.cluster:events() >= 100)
      for _, node in nodes.list() do node:update { label_add = { go = 'yes' } } end
      t.clock:advance '1m'
      for _, service in services.list() do assert(service.healthy == 20, service.name) end
      assert(#t.cluster:events 'task.running' == 2000)
    end }";
    check(many, &[], 0, &["1 passed, 0 failed"]);
    let ports = "test('ports', function(t)
      local ports = {}
      for n = 1, 400 do ports['p' .. n] = {} end
      service 'greedy' { command = 'x', replicas = 120, ports = ports, restart = { condition = 'none' } }:apply()
      t.clock:advance '1m'
      local rejected = 0
      for _, task in services.get('greedy').tasks do if task.state == 'rejected' then rejected += 1 end end
      local events = t.cluster:events 'task.failed'
      assert(#events == 7 and events[1].reason:find 'no port is free', #events)
    end)";
    check(ports, &[], 0, &["1 passed, 0 failed"]);
}

#[test]
fn what_a_file_registers_is_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    for (what, call) in [("math.random", "math.random(0, 59)"), ("time.now", "time.now()")] {
        let source = format!("cron 'x' {{ schedule = {call} .. ' * * * *', run = function() end }}");
        std::fs::write(folder.path().join("x.lua"), source).unwrap();
        let output = Command::new(NEAP).args(["script", "check"]).arg(folder.path()).output().unwrap();
        let said = text(&output);
        assert!(output.status.code() == Some(3), "{said}");
        assert!(said.contains(&format!("{what}: cannot be called at the top level")), "{said}");
    }
}

#[test]
fn files_of_tests_stay_with_the_user() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.lua"), "policy 'p' { score = function() return 1 end }").unwrap();
    std::fs::write(folder.path().join("p_test.lua"), "test('p', function() scripts '*.lua' end)").unwrap();
    let output = neap_test(folder.path(), &["."]);
    assert!(output.status.success(), "{}", text(&output));
    let check = Command::new(NEAP).args(["script", "check"]).arg(folder.path()).output().unwrap();
    assert!(check.status.success() && !text(&check).contains("p_test"), "{}", text(&check));
    let run = Command::new(NEAP)
        .args(["run", "--standalone"])
        .arg(folder.path().join("p_test.lua"))
        .env("NEAP_CONFIG", "/dev/null")
        .output()
        .unwrap();
    assert!(run.status.code() == Some(3) && text(&run).contains("works in `neap test`"), "{}", text(&run));
}
