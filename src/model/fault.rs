//! Named points at which a test lets the process die as kill -9 would. Nothing in a release build.

/// Passes the point `name`. In a debug build the process kills itself here when `NEAP_FAULT` is `name` or `name:N`
/// (the N-th pass).
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static ARMED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("NEAP_FAULT").ok()?;
        let (point, count) =
            text.split_once(':').map_or((text.as_str(), 1), |(point, n)| (point, n.parse().unwrap_or(1)));
        Some((point.to_owned(), AtomicU32::new(count)))
    });
    if let Some((point, left)) = armed
        && point == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        eprintln!("fault point {name}: killed");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Stands still for four seconds, as a call inside C would, when `NEAP_FAULT` is `name` in a debug build.
#[cfg(debug_assertions)]
pub fn stall(name: &str) {
    if std::env::var("NEAP_FAULT").is_ok_and(|armed| armed == name) {
        std::thread::sleep(std::time::Duration::from_secs(4));
    }
}

/// Passes on.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn stall(_name: &str) {}

/// Passes the point `name`.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &str) {}
