//! What may be typed, and what it means.

pub(crate) mod container;
mod mount;
pub(crate) mod normalise;
mod volume;

pub(crate) use container::ContainerFlags;
