//! What may be typed, and what it means.

pub(crate) mod container;
pub(crate) mod endpoint;
mod further;
pub(crate) mod images;
pub(crate) mod limits;
mod mount;
pub(crate) mod normalise;
pub(crate) mod time;
mod volume;
mod words;

pub(crate) use container::ContainerFlags;
pub(crate) use words::Words;

/// Says that something typed has no effect, on standard error.
#[expect(clippy::print_stderr, reason = "a warning beside the answer")]
pub(crate) fn warn(text: &str) {
    eprintln!("qengine: warning: {text}");
}
