//! Fixtures of the end-to-end tests.
//!
//! The tests drive the built programs from outside, as a user does: by command lines, terminals,
//! sockets and files. Nothing here links them. Every fixture cleans up when it is dropped, also
//! after a failed assertion, and [`host`] checks that it did.

pub mod bundle;
pub mod calls;
pub mod case;
pub mod command;
pub mod cutter;
pub mod differential;
pub mod docker;
pub mod engine;
pub mod evil;
pub mod executable;
pub mod grpc;
pub mod host;
pub mod http;
pub mod image;
pub mod load;
pub mod monitored;
pub mod needs;
pub mod netns;
pub mod peers;
pub mod programs;
pub mod pty;
pub mod random;
pub mod registry;
pub mod runtime;
pub mod trace;
pub mod traffic;
pub mod ttrpc;
pub mod usage;
pub mod user;
pub mod wait;
pub mod words;
