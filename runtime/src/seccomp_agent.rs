//! Hands the listener of a filter with `SCMP_ACT_NOTIFY` to the agent that answers its questions.
//!
//! Governing text: runtime-spec config-linux.md, "Seccomp", `listenerPath` and "The Container Process State".

use std::os::fd::BorrowedFd;
use std::path::Path;

use serde::Serialize;

use crate::console::{connect_socket, send_descriptor};
use crate::failure::{CallFailed, During};
use crate::spec::seccomp::Seccomp;
use crate::state::{Agent, Record};

/// Why the agent did not get it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody named.
    #[error("seccomp listenerPath is not set")]
    NoPath,
    /// Nobody there.
    #[error("failed to connect with seccomp agent specified in the seccomp profile")]
    Connect(#[source] CallFailed),
    /// A system call failed.
    #[error("unable to hand the seccomp listener over")]
    Call(#[from] CallFailed),
}

/// The agent of a profile.
pub(crate) fn of(profile: &Seccomp) -> Option<Agent> {
    let path = profile
        .listener_path
        .clone()
        .filter(|path| !path.is_empty())?;
    Some(Agent {
        path,
        metadata: profile.listener_metadata.clone().unwrap_or_default(),
    })
}

/// What the agent is told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: ContainerState<'a>,
}

/// The container's state in it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerState<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'static str,
    pid: i32,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
}

/// Sends the listener of process `pid` to the agent.
pub(crate) fn hand_over(listener: BorrowedFd<'_>, record: &Record, pid: i32) -> Result<(), Error> {
    let agent = record.agent.as_ref().ok_or(Error::NoPath)?;
    let text = describe(&agent.metadata, record, pid);
    let socket = connect_socket(Path::new(&agent.path)).map_err(Error::Connect)?;
    send_descriptor(&socket, &text, listener).during("sendmsg", &agent.path)?;
    Ok(())
}

/// The message.
fn describe(metadata: &str, record: &Record, pid: i32) -> Vec<u8> {
    let state = ContainerState {
        oci_version: &record.oci_version,
        id: &record.id,
        status: if pid == record.pid {
            "creating"
        } else {
            "running"
        },
        pid: record.pid,
        bundle: &record.bundle,
        annotations: &record.annotations,
    };
    let state = ProcessState {
        oci_version: &record.oci_version,
        fds: ["seccompFd"],
        pid,
        metadata,
        state,
    };
    // Strings and numbers serialise without fail.
    serde_json::to_vec(&state).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message() {
        let record = Record {
            oci_version: "1.0.2".into(),
            id: "c".into(),
            pid: 7,
            bundle: "/b".into(),
            ..Record::default()
        };
        assert_eq!(
            String::from_utf8(describe("m", &record, 7)).unwrap(),
            r#"{"ociVersion":"1.0.2","fds":["seccompFd"],"pid":7,"metadata":"m","state":{"ociVersion":"1.0.2","id":"c","status":"creating","pid":7,"bundle":"/b"}}"#
        );
    }
}
