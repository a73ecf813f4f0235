//! Hosted scripts: what they may, what they see, and what their author reads when they fail.

use std::sync::Arc;

use neap::model::bundle::{Bundle, HostedKind};
use neap::model::node::Node;
use neap::model::release::{Answer, Release, ReleaseView};
use neap::model::service::{OnPolicyError, ServiceSpec};
use neap::model::units::Bytes;
use neap::model::{Error, Kind, id::Slot};
use neap::scheduler::board::Board;
use neap::scheduler::board::Claim;
use neap::scheduler::place::{Ask, Filter, Placer, SlotAsk};
use neap::scheduler::release::Rollouts;
use neap::script::host::{ScriptHost, Scripts};

fn bundle(files: &[(&str, &str)]) -> Bundle {
    Bundle {
        entries: vec![files[0].0.to_owned()],
        files: files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect(),
    }
}

fn spec(policy: &str) -> ServiceSpec {
    let policy: serde_json::Value = serde_json::from_str(policy).unwrap_or_else(|_| serde_json::json!(policy));
    ServiceSpec::read(&serde_json::json!({ "name": "web", "command": ["x"], "policy": policy, "rollout": "mine" }))
        .unwrap()
}

/// Three nodes: a and b in zone 1, c in zone 2; a runs two tasks of `web`, c one.
fn board() -> Board {
    let mut board = Board::default();
    for (id, zone, tasks) in [("a", "1", 2), ("b", "1", 0), ("c", "2", 1)] {
        let mut node = Node::new(id, id);
        node.labels.insert("zone".into(), zone.into());
        node.memory = Bytes(1 << 30);
        board.set_nodes([Arc::new(node)]);
        for _ in 0..tasks {
            board.alter(id, &"web".parse().unwrap(), true, &Claim::default(), 1);
        }
    }
    board
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Score(f64),
    Refused(String),
}

/// What the policy says of each node.
fn rank(files: &[(&str, &str)], policy: &str) -> Result<Vec<Verdict>, Error> {
    let host = Arc::new(ScriptHost::new().unwrap());
    let hash = host.add(bundle(files));
    ["a", "b", "c"].into_iter().map(|node| one(&host, &hash, policy, node)).collect()
}

// What it says of one: asked by leaving it as the only candidate.
fn one(host: &Arc<ScriptHost>, hash: &str, policy: &str, node: &str) -> Result<Verdict, Error> {
    let mut spec = spec(policy);
    spec.constraints = vec![format!("node.id=={node}").parse().unwrap()];
    let ask = Ask {
        service: "web".parse().unwrap(),
        revision: 1,
        labels: Arc::default(),
        filter: Filter::of(&spec),
        policies: spec.policy.clone(),
        bundle: Some(hash.to_owned()),
        on_error: OnPolicyError::Pending,
        on: Vec::new(),
        slots: vec![SlotAsk { slot: Slot::Replica(3), replaces: Vec::new(), stays: None }],
    };
    let mut answer = None;
    Scripts::new(host)
        .place(&board(), &mut std::iter::once(ask), &mut |_, answers| answer = answers.into_iter().next());
    match answer.unwrap().place {
        Ok(placement) => {
            assert_eq!(&*board().seat(placement.at as usize).unwrap().node.id, node);
            Ok(Verdict::Score(placement.score))
        }
        Err(error) if error.kind == Kind::Exhausted => {
            let reason = error.message.split(&format!("policy \"{policy}\": ")).nth(1).unwrap();
            Ok(Verdict::Refused(reason.trim_end_matches(" on 1 node)").to_owned()))
        }
        Err(error) => Err(*error),
    }
}

/// The verdicts as text, or the error as its author reads it.
fn check(source: &str, expected: &str) {
    let got = match rank(&[("mine.lua", source)], "mine") {
        Ok(verdicts) => verdicts
            .iter()
            .map(|verdict| match verdict {
                Verdict::Score(score) => score.to_string(),
                Verdict::Refused(reason) => format!("no: {reason}"),
            })
            .collect::<Vec<_>>()
            .join(", "),
        Err(error) => error.to_string(),
    };
    assert_eq!(got, expected, "for\n{source}");
}

#[test]
fn the_library_spreads_and_packs() {
    let order = |policy: &str| -> Vec<usize> {
        let verdicts = rank(&[("mine.lua", "policy 'mine' { score = function() return 0 end }")], policy).unwrap();
        let mut ranked: Vec<(usize, f64)> = verdicts
            .iter()
            .enumerate()
            .map(|(index, verdict)| if let Verdict::Score(score) = verdict { (index, *score) } else { panic!() })
            .collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.into_iter().map(|(index, _)| index).collect()
    };
    assert_eq!(order("spread"), [1, 2, 0], "the emptiest node first");
    assert_eq!(order(r#"{ "use": "spread", "over": "labels.zone" }"#)[0], 2, "zone 2 has fewer");
    assert_eq!(order("binpack")[0], 0, "the fullest first");
}

#[test]
fn a_policy_sees_nodes_tasks_and_counts() {
    check(
        "policy 'mine' { score = function(n, t, v) return v:count { service = t.service, same = 'labels.zone' } end }",
        "2, 2, 1",
    );
    check("policy 'mine' { score = function(n, t, v) return v:count { node = true } end }", "2, 0, 1");
    check(
        "policy 'mine' { filter = function(n) return n.labels.zone == '2', 'wrong zone' end }",
        "no: wrong zone, no: wrong zone, 0",
    );
    check("policy 'mine' { score = function(n) return n.labels.gpu and 1 or n.memory / 2^30 end }", "1, 1, 1");
}

#[test]
fn its_mistakes_are_shown_where_they_stand() {
    check(
        "policy 'mine' {\n  score = function(node)\n    return node.label.zone\n  end,\n}",
        "policy \"mine\": node has no field \"label\"; did you mean \"labels\"?\n  --> mine.lua:3\n  3 |     return node.label.zone\n   = in score(node \"a\", task \"web.3\")",
    );
    check(
        "policy 'mine' { score = function(n, t, v)\n  return v:count { servcie = 'x' } end }",
        "policy \"mine\": view:count: unknown field \"servcie\"; did you mean \"service\"?\n  --> mine.lua:2\n  2 |   return v:count { servcie = 'x' } end }\n   = in score(node \"a\", task \"web.3\")",
    );
    check(
        "policy 'mine' { score = function() end }",
        "policy \"mine\": returned nothing, not a number\n  --> mine.lua:1\n   = in score(node \"a\", task \"web.3\")",
    );
    check(
        "policy 'mine' { score = function() return 0/0 end }",
        "policy \"mine\": returned nan, not a number\n  --> mine.lua:1\n   = in score(node \"a\", task \"web.3\")",
    );
    check(
        "policy 'mine' { filter = function() return 'yes' end }",
        "policy \"mine\": returned a string, not true or false\n  --> mine.lua:1\n   = in filter(node \"a\", task \"web.3\")",
    );
    check(
        "policy 'mine' { scroe = function() end }",
        "script mine.lua: policy \"mine\": unknown field \"scroe\"; did you mean \"score\"?\n  --> mine.lua:1\n  1 | policy 'mine' { scroe = function() end }",
    );
    check(
        "policy 'mine' { score = 5 }",
        "script mine.lua: policy \"mine\": score: expected a function, got a integer\n  --> mine.lua:1\n  1 | policy 'mine' { score = 5 }",
    );
    check(
        "policy('mine', { scroe = function() end })",
        "script mine.lua: policy \"mine\": unknown field \"scroe\"; did you mean \"score\"?\n  --> mine.lua:1\n  1 | policy('mine', { scroe = function() end })",
    );
    check(
        "policy 'mine' { score = function() return 1 end }\npolicy 'forgotten'",
        "policy \"forgotten\": is given no table\n  --> mine.lua:2\n  = help: write policy \"forgotten\" { ... }",
    );
    check(
        "policy('mine', 5)",
        "script mine.lua: policy \"mine\": expected a table, got a integer\n  --> mine.lua:1\n  1 | policy('mine', 5)\n  = help: write policy \"mine\" { ... }",
    );
    check(
        "on 'task.failed' { name = 'x', run = print, filter = { slot = true } }",
        "script mine.lua: on \"task.failed\": filter.slot: expected a text, got true\n  --> mine.lua:1\n  1 | on 'task.failed' { name = 'x', run = print, filter = { slot = true } }",
    );
    check(
        "on 'task.failed' { name = 'x', run = print, filter = { what = 'task.ended' } }",
        "script mine.lua: on \"task.failed\": filter.what: such an event is always \"task.failed\"\n  --> mine.lua:1\n  1 | on 'task.failed' { name = 'x', run = print, filter = { what = 'task.ended' } }",
    );
    check(
        "policy 'mine' { score = function( }",
        "script mine.lua: syntax: Expected identifier when parsing variable name, got '}'\n  --> mine.lua:1\n  1 | policy 'mine' { score = function( }",
    );
    check(
        "policy 'mine' { score = function() return 1 end }\npolicy 'mine' { score = function() return 2 end }",
        "script mine.lua: policy \"mine\": is registered twice; the first stands at mine.lua:1\n  --> mine.lua:2\n  2 | policy 'mine' { score = function() return 2 end }",
    );
    check(
        "local x = nil\nlocal y = x.z",
        "script mine.lua: attempt to index nil with 'z'\n  --> mine.lua:2\n  2 | local y = x.z",
    );
}

#[test]
fn it_computes_only() {
    for (code, what) in [
        ("http.get 'http://127.0.0.1'", "http: cannot be used here: a policy computes only"),
        ("services.list()", "services: cannot be used here"),
        ("fs.read '/etc/passwd'", "fs: cannot be used here"),
        ("require '../../etc/passwd'", "leads out of the scripts' folder"),
        ("getfenv()", "nothing is called \"getfenv\""),
        ("debug.getregistry()", "nothing is called \"debug\""),
        ("loadstring 'return 1'", "nothing is called \"loadstring\""),
        ("string.format = nil", "attempt to modify a readonly table"),
        ("os.execute 'ls'", "nothing is called \"os\""),
        ("io.open '/etc/passwd'", "nothing is called \"io\""),
        ("time.now()", "time has nothing called \"now\""),
    ] {
        let source = format!("policy 'mine' {{ score = function() {code} return 1 end }}");
        let error = rank(&[("mine.lua", &source)], "mine").unwrap_err().to_string();
        assert!(error.contains(what), "{code}: {error}");
    }
}

#[test]
fn after_a_runaway_call_the_next_one_works() {
    let host = Arc::new(ScriptHost::new().unwrap());
    let source =
        "local calls = 0\npolicy 'mine' { score = function(n) if n.id == 'b' then while true do end end return 1 end }";
    let hash = host.add(bundle(&[("mine.lua", source)]));
    assert_eq!(one(&host, &hash, "mine", "b").unwrap_err().kind, Kind::Script);
    assert_eq!(one(&host, &hash, "mine", "a").unwrap(), Verdict::Score(1.0));
}

#[test]
fn files_beside_it_are_required() {
    let files = [
        (
            "policies/mine.lua",
            "local zones = require './lib/zones'\npolicy 'mine' { score = function(n) return zones.rank(n) end }",
        ),
        ("policies/lib/zones.lua", "return { rank = function(n) return n.labels.zone == '2' and 1 or 0 end }"),
    ];
    assert_eq!(rank(&files, "mine").unwrap()[2], Verdict::Score(1.0));
    let error = rank(&[("mine.lua", "require './nothing'")], "mine").unwrap_err().to_string();
    assert!(error.contains("there is no file nothing.lua") && error.contains("mine.lua:1"), "{error}");
    let error = rank(&[("a.lua", "require './b'"), ("b.lua", "require './a'")], "mine").unwrap_err().to_string();
    assert!(error.contains("in a circle"), "{error}");
}

fn view(step: u32, moved: u32, failed: u32, options: serde_json::Value) -> ReleaseView {
    ReleaseView {
        service: "web".parse().unwrap(),
        step,
        from: 1,
        to: 2,
        replicas: 4,
        moved,
        remaining: 4 - moved,
        healthy: moved,
        failed_tasks: failed,
        failure: (failed > 0).then(|| "web.1: exit code 1".to_owned()),
        elapsed: 1.0,
        overdue: false,
        options: options.as_object().cloned().unwrap(),
    }
}

fn step(source: &str, name: &str, view: &ReleaseView) -> Result<Answer, Error> {
    let host = Arc::new(ScriptHost::new().unwrap());
    let hash = host.add(bundle(&[("mine.lua", source)]));
    let release: Release = serde_json::from_value(serde_json::json!({
        "service": "web", "from": 1, "to": 2, "back": 1, "rollout": { "use": name }, "bundle": hash, "state": "running", "step": 0,
        "moved": [], "order": "start-first", "started_at": 0, "judged_from": 0,
    }))
    .unwrap();
    Scripts::new(&host).step(&release, view)
}

#[test]
fn rolling_goes_batch_by_batch_and_judges_failures() {
    let nothing = "policy 'x' { score = function() return 0 end }";
    let rolling = |step_number, moved, failed, options| {
        step(nothing, "rolling", &view(step_number, moved, failed, options)).unwrap()
    };
    assert!(matches!(rolling(1, 0, 0, serde_json::json!({ "batch": "25%" })), Answer::Batch(_)));
    assert_eq!(rolling(2, 4, 0, serde_json::json!({})), Answer::Promote(()));
    assert_eq!(rolling(2, 1, 1, serde_json::json!({})), Answer::Rollback("a new task failed".into()));
    assert_eq!(
        rolling(2, 1, 1, serde_json::json!({ "on_failure": "pause" })),
        Answer::Pause("a new task failed".into())
    );
    assert!(matches!(rolling(2, 1, 1, serde_json::json!({ "on_failure": "continue" })), Answer::Batch(_)));
    assert!(matches!(rolling(2, 1, 1, serde_json::json!({ "max_failure_ratio": 0.25 })), Answer::Batch(_)));
    let Answer::Batch(batch) = rolling(2, 1, 0, serde_json::json!({ "delay": "5s" })) else { panic!("no batch") };
    assert_eq!((batch.hold, batch.refill), ("5s".parse().unwrap(), false));
    let error =
        step(nothing, "rolling", &view(2, 1, 1, serde_json::json!({ "on_failure": "panic" }))).unwrap_err().to_string();
    assert!(error.contains("on_failure is \"panic\"; known: rollback, pause, continue"), "{error}");
}

#[test]
fn a_step_must_answer_an_intent() {
    let ask = |body: &str| {
        let source = format!("rollout 'mine' {{ step = function(release) {body} end }}");
        step(&source, "mine", &view(1, 0, 0, serde_json::json!({}))).map_err(|error| error.to_string())
    };
    assert!(matches!(ask("return release:batch { tasks = 2, order = 'stop-first' }"), Ok(Answer::Batch(_))));
    assert!(matches!(ask("return release:batch()"), Ok(Answer::Batch(_))));
    assert!(matches!(ask("return release:shift { tasks = 1, weight = 5, hold = '10m' }"), Ok(Answer::Shift(_))));
    for (body, what) in [
        ("", "returned nothing, not an intent"),
        ("return 5", "not an intent"),
        ("return {}", "returned a table, not an intent"),
        ("return release:bacth {}", "release has no field \"bacth\"; did you mean \"batch\"?"),
        ("return release.batch { tasks = 1 }", "is called with a colon: release:batch(...)"),
        ("return release:batch { taks = 1 }", "unknown field \"taks\"; did you mean \"tasks\"?"),
        ("return release:batch { tasks = 0 }", "expected a number of tasks or a part such as \"25%\""),
        ("return release:shift {}", "weight is missing"),
        ("return release:wait 'soon'", "has a unit without a number"),
        ("error 'not today'", "not today"),
    ] {
        let error = ask(body).unwrap_err();
        assert!(error.contains(what), "{body}: {error}");
    }
}

#[test]
fn only_the_named_kind_is_loaded_and_names_are_found() {
    let host = Arc::new(ScriptHost::new().unwrap());
    let source = "policy 'p' { score = function() return 0 end }\ncheck 'c' { every = '2s', on_fail = 'unroute', run = function() return true end }\nrollout 'r' { deadline = '2h', step = function(r) return r:promote() end }";
    let hash = host.add(bundle(&[("all.lua", source)]));
    let registered = host.registered(Some(&hash)).unwrap();
    let lines: Vec<(HostedKind, &str, u32)> =
        registered.registrations.values().map(|(r, _)| (r.kind, r.name.as_str(), r.line)).collect();
    assert_eq!(lines, [(HostedKind::Policy, "p", 1), (HostedKind::Check, "c", 2), (HostedKind::Rollout, "r", 3)]);
    let (_, facts) = host.find(&registered, HostedKind::Check, "c").unwrap();
    assert_eq!(facts.check.every.unwrap().to_string(), "2s");
    let error = host.find(&registered, HostedKind::Policy, "spraed").unwrap_err().to_string();
    assert!(error.contains("did you mean \"spread\"?"), "{error}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn any_text_is_a_script_or_an_error(text in "[ -~\n]{0,200}") {
        let _ = neap::script::host::inspect(Arc::new(bundle(&[("any.lua", &text)])), "any");
    }
}
