//! Whether and when a slot is tried again after its task ended.

use crate::model::clock::Timestamp;
use crate::model::service::{RestartCondition, RestartPolicy};
use crate::model::task::{Task, TaskState};
use crate::model::units::Duration;

/// What follows from the way in which a slot's last task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// A new task, not before that moment, with that many failures behind it.
    At(Option<Timestamp>, u32),
    /// No new task.
    Never,
}

/// The longest wait before a node is asked again that had no room.
const ROOM: Duration = Duration::from_secs(30);

/// Decides by the newest ended task of the slot and revision, if there is one.
pub fn again(policy: &RestartPolicy, last: Option<&Task>) -> Again {
    let Some(last) = last else { return Again::At(None, 0) };
    let failed = matches!(last.state, TaskState::Failed | TaskState::Rejected | TaskState::Lost);
    if last.found_no_room() && !last.was_on_trial() {
        // Whatever its policy says of failures, this is none; and room may be made at any moment.
        let end = last.finished_at.unwrap_or(last.created_at);
        return Again::At(Some(end.after(delay(policy, last.no_room).min(ROOM))), last.failures);
    }
    let by_itself = !last.went_with_its_node() && !last.was_on_trial() && (failed || last.state == TaskState::Complete);
    if !by_itself {
        return Again::At(None, 0);
    }
    match policy.condition {
        RestartCondition::None => return Again::Never,
        RestartCondition::OnFailure if !failed => return Again::Never,
        _ => {}
    }
    let ran = match (last.started_at, last.finished_at) {
        (Some(start), Some(end)) => end.since(start),
        _ => Duration::ZERO,
    };
    let failures =
        if ran >= policy.window && policy.window > Duration::ZERO { 1 } else { last.failures.saturating_add(1) };
    if policy.max_attempts > 0 && failures > policy.max_attempts {
        return Again::Never;
    }
    let end = last.finished_at.unwrap_or(last.created_at);
    Again::At(Some(end.after(delay(policy, failures))), failures)
}

/// The wait before the n-th restart in a row: doubled each time, up to the longest.
fn delay(policy: &RestartPolicy, failures: u32) -> Duration {
    let doubled =
        policy.delay.millis().saturating_mul(1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX));
    Duration::from_millis(doubled.min(policy.max_delay.millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_is_no_failure() {
        let task = |no_room: u32| -> Task {
            serde_json::from_value(serde_json::json!({
                "id": "01arz3ndektsv4rrffq69g5fav", "service": "web", "service_id": crate::model::id::ServiceId::numbered(1),
                "slot": { "replica": 1 }, "revision": 1, "state": "rejected", "health": "none", "created_at": 0,
                "finished_at": 1000, "failures": 1, "no_room": no_room,
            }))
            .unwrap()
        };
        let never = RestartPolicy { condition: RestartCondition::None, max_attempts: 2, ..RestartPolicy::default() };
        assert_eq!(again(&never, Some(&task(0))), Again::Never);
        assert_eq!(again(&never, Some(&task(1))), Again::At(Some(Timestamp(2_000)), 1));
        assert_eq!(again(&never, Some(&task(9))), Again::At(Some(Timestamp(31_000)), 1));
    }

    #[test]
    fn doubles_up_to_the_longest() {
        let policy = RestartPolicy::default();
        let waits: Vec<String> = [1, 2, 3, 8, 9, 10, 80].iter().map(|n| delay(&policy, *n).to_string()).collect();
        assert_eq!(waits, ["1s", "2s", "4s", "2m8s", "4m16s", "5m", "5m"]);
    }
}
