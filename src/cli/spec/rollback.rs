//! `--rollback-*`: how the revision before comes back.

use serde_json::{Map, Value, json};

use super::{read_use, set, table};
use crate::model::Result;

#[derive(clap::Args, Default)]
pub struct RollbackArgs {
    /// Rollout script for going back, as NAME or NAME,option=value; none: as the rollout
    #[arg(long, value_name = "NAME")]
    rollback_use: Option<String>,
    /// Replicas that go back at once, or a part such as 25%; 0 for all (as the rollout, unless told)
    #[arg(long, value_name = "N")]
    rollback_parallelism: Option<String>,
    /// Time between batches of a rollback
    #[arg(long, value_name = "DURATION")]
    rollback_delay: Option<String>,
    /// Time a replica that came back has to be healthy
    #[arg(long, value_name = "DURATION")]
    rollback_monitor: Option<String>,
    /// start-first or stop-first, going back
    #[arg(long, value_parser = ["start-first", "stop-first"])]
    rollback_order: Option<String>,
    /// What follows when a replica fails that came back
    #[arg(long, value_parser = ["pause", "continue"])]
    rollback_failure_action: Option<String>,
    /// Share of replicas that may fail, going back
    #[arg(long, value_name = "RATIO")]
    rollback_max_failure_ratio: Option<f64>,
}

/// A number of replicas, or a part of them; Docker's 0 is all of them.
pub fn batch(text: &str) -> Value {
    match text.parse::<u32>() {
        Ok(0) => json!("100%"),
        Ok(count) => json!(count),
        Err(_) => json!(text),
    }
}

impl RollbackArgs {
    // As options of the rollout `rolling`.
    fn fields(&self) -> [(&'static str, Option<Value>); 6] {
        [
            ("batch", self.rollback_parallelism.as_deref().map(batch)),
            ("delay", self.rollback_delay.clone().map(Value::from)),
            ("min_healthy", self.rollback_monitor.clone().map(Value::from)),
            ("order", self.rollback_order.clone().map(Value::from)),
            ("on_failure", self.rollback_failure_action.clone().map(Value::from)),
            ("max_failure_ratio", self.rollback_max_failure_ratio.map(Value::from)),
        ]
    }

    /// Puts them into a description. What is not said is as for the rollout, but that a rollback never goes back itself.
    pub fn describe(&self, spec: &mut Map<String, Value>) -> Result<()> {
        match self.rollback_use.as_deref() {
            Some("none") => drop(spec.insert("rollback".into(), Value::Null)),
            Some(text) => drop(spec.insert("rollback".into(), read_use(text)?)),
            None => {}
        }
        let fields = self.fields().into_iter().filter_map(|(key, value)| Some((key, value?)));
        for (key, value) in fields {
            if spec.get("rollback").is_none_or(Value::is_null) {
                let mut as_rollout = match spec.get("rollout") {
                    Some(Value::Object(rollout)) if rollout.get("use").is_none_or(|used| used == "rolling") => {
                        rollout.clone()
                    }
                    _ => Map::new(),
                };
                as_rollout.insert("use".into(), "rolling".into());
                if as_rollout.get("on_failure").is_none_or(|action| action == "rollback") {
                    as_rollout.insert("on_failure".into(), "pause".into());
                }
                spec.insert("rollback".into(), Value::Object(as_rollout));
            }
            if let Some(Value::String(name)) = spec.get("rollback").cloned() {
                spec.insert("rollback".into(), json!({ "use": name }));
            }
            set(table(spec, "rollback"), key, Some(value));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &RollbackArgs, before: Value, expected: Value) {
        let Value::Object(mut spec) = before else { panic!("a description is a table") };
        args.describe(&mut spec).unwrap();
        assert_eq!(spec.get("rollback").cloned().unwrap_or_default(), expected);
    }

    #[test]
    fn what_is_not_said_is_as_for_the_rollout() {
        let delay = RollbackArgs { rollback_delay: Some("5s".into()), ..RollbackArgs::default() };
        check(&RollbackArgs::default(), json!({ "rollout": "rolling" }), Value::Null);
        check(&delay, json!({}), json!({ "use": "rolling", "delay": "5s", "on_failure": "pause" }));
        let rollout = json!({ "use": "rolling", "order": "stop-first", "batch": 3, "on_failure": "rollback" });
        let expected =
            json!({ "use": "rolling", "order": "stop-first", "batch": 3, "on_failure": "pause", "delay": "5s" });
        check(&delay, json!({ "rollout": rollout }), expected);
        // What is there stays; another script's options are its own.
        let there = json!({ "rollback": { "use": "rolling", "on_failure": "continue" } });
        check(&delay, there, json!({ "use": "rolling", "on_failure": "continue", "delay": "5s" }));
        check(&delay, json!({ "rollback": "mine" }), json!({ "use": "mine", "delay": "5s" }));
        check(
            &delay,
            json!({ "rollout": { "use": "canary", "shares": 3 } }),
            json!({ "use": "rolling", "on_failure": "pause", "delay": "5s" }),
        );
        let none = RollbackArgs { rollback_use: Some("none".into()), ..RollbackArgs::default() };
        check(&none, json!({ "rollback": "mine" }), Value::Null);
        assert_eq!((batch("0"), batch("2"), batch("25%")), (json!("100%"), json!(2), json!("25%")));
    }
}
