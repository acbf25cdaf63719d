//! The engine as a whole: what it is, what it occupies, and whether its store is as it should be.

pub mod check;
pub mod info;
pub mod usage;
