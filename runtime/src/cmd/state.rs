//! `state`: what is known of a container, as JSON.

use anyhow::Result;
use serde::Serialize;

use super::Request;
use crate::container::{Container, Status};

/// The members in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    pub(super) oci_version: String,
    pub(super) id: String,
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: String,
    pub(super) rootfs: String,
    pub(super) created: String,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub(super) annotations: std::collections::BTreeMap<String, String>,
    pub(super) owner: String,
}

impl Summary {
    /// Puts it together.
    pub(super) fn new(container: Container) -> Self {
        let status = container.status();
        let record = container.record;
        Self {
            oci_version: record.oci_version,
            id: record.id,
            pid: if status == Status::Stopped {
                0
            } else {
                record.pid
            },
            status: status.name(),
            bundle: record.bundle.to_string_lossy().into_owned(),
            rootfs: record.rootfs.to_string_lossy().into_owned(),
            created: record.created,
            annotations: record.annotations,
            owner: String::new(),
        }
    }
}

/// Runs the command.
pub(super) fn state(request: &Request<'_>) -> Result<u8> {
    let container = Container::load(&request.store, request.parsed.id())?;
    super::print(&serde_json::to_string_pretty(&Summary::new(container))?)
}
