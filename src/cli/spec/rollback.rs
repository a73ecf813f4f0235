//! `--rollback-*`: how the revision before comes back.

use serde_json::{Value, json};

#[derive(clap::Args, Default)]
pub struct RollbackArgs {
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
    /// As options of the rollout `rolling`. Docker's rollback never rolls back itself.
    pub fn fields(&self) -> [(&'static str, Option<Value>); 6] {
        let mut fields = [
            ("batch", self.rollback_parallelism.as_deref().map(batch)),
            ("delay", self.rollback_delay.clone().map(Value::from)),
            ("min_healthy", self.rollback_monitor.clone().map(Value::from)),
            ("order", self.rollback_order.clone().map(Value::from)),
            ("on_failure", self.rollback_failure_action.clone().map(Value::from)),
            ("max_failure_ratio", self.rollback_max_failure_ratio.map(Value::from)),
        ];
        if fields.iter().any(|(_, value)| value.is_some()) {
            fields[4].1.get_or_insert_with(|| "pause".into());
        }
        fields
    }
}
