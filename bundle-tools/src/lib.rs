//! OCI images, layers and bundles as plain library calls.
//!
//! The lowest layer of the stack: it knows the formats of the OCI image and
//! runtime specifications and the files they describe, and starts no process.
//! Most of it needs no privileges. `qengine` generates its bundles with it;
//! `qbundle` is its command line.
//!
//! The parts, from the bytes up:
//! - [`digest`]: checked content digests, and readers and writers that hash.
//! - [`image`]: descriptors, manifests, indexes, image configurations, platforms.
//! - [`layout`]: an OCI image layout directory, which is also an image store.
//! - [`layer`]: compression, applying a layer archive, making one.
//! - [`package`]: archives of whole images, member by member.
//! - [`rooted`]: paths resolved inside a directory that may be hostile.
//! - [`user`], [`seccomp`], [`generate`]: an image configuration becomes a runtime one.
//! - [`validate`]: what is wrong with a bundle.

pub mod digest;
pub mod generate;
pub mod image;
pub mod layer;
pub mod layout;
pub mod package;
mod remove;
pub mod rooted;
pub mod seccomp;
pub mod user;
pub mod validate;

pub use digest::Digest;
pub use remove::remove_tree;
