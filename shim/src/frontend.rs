//! The faces of the monitor: what it is called as and how its caller speaks to
//! it. Each turns its own command line into a [`crate::plan::Plan`].

pub(crate) mod conmon;
pub(crate) mod containerd;
