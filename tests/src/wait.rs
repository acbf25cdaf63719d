//! Bounded waits on conditions: nothing in the tests sleeps for a fixed time and hopes.

use std::time::{Duration, Instant};

/// How long a condition that must come true may take: a minute, or `$QSTACK_PATIENCE` seconds. Long,
/// because it is only ever waited for in full when a test fails, and the virtual machine is twenty
/// times slower than the host.
#[must_use]
pub fn patience() -> Duration {
    let seconds = std::env::var("QSTACK_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

/// Asks `condition` until it answers, and gives that answer.
///
/// # Panics
/// When [`patience`] has passed; `what` names what did not happen.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    match within(patience(), &mut condition) {
        Some(value) => value,
        None => panic!("waited {:?} in vain until {what}", patience()),
    }
}

/// Asks `condition` until it answers or `limit` has passed.
pub fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
