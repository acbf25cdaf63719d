//! What may be typed, and what it means.

pub(crate) mod container;
pub(crate) mod normalise;
mod volume;

pub(crate) use container::ContainerFlags;
