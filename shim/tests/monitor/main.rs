//! The monitor as its callers see it: real processes, a fake runtime (see
//! `examples/fake-runtime.rs`), and one container of a real one where there is one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod exec;
mod output;
mod session;
mod start;
mod stdin;

/// Says in the test's output that it did not run, and why.
fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}
