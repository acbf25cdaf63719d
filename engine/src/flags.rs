//! What may be typed, and what it means.

pub(crate) mod container;
pub(crate) mod limits;
mod mount;
pub(crate) mod normalise;
pub(crate) mod time;
mod volume;
mod words;

pub(crate) use container::ContainerFlags;
pub(crate) use words::Words;
