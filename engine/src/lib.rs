//! The engine: images, containers, networks and volumes on one directory, without a daemon.
//!
//! Every command opens the [`store::Store`], does its work under locks as small as the thing they protect, and ends.
//! What has to go on afterwards is a process of its own: `qshim`, one per container.
//!
//! Nothing in this library prints, prompts or reads the command line; that is `cmd` in the binary.

pub mod build;
pub mod container;
pub mod image;
pub mod network;
pub mod portmap;
pub mod store;
pub mod system;
pub mod volume;
