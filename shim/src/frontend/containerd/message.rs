//! The messages of containerd's interface, as far as they are used here.
//!
//! Names, numbers and types are those of containerd's published protos: `runtime/task/v3/shim.proto` (v2 has the same
//! messages under another package name), `events/task.proto`, `services/ttrpc/events/v1/events.proto`,
//! `types/runc/options/oci.proto`, `runtime/bootstrap/v1/bootstrap.proto`; and of ttrpc's `request.proto`. Fields that
//! neither side looks at here are left out: both sides pass over what they do not know.

use std::collections::HashMap;

use prost::Message;

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

impl Any {
    /// Packs a message under its full name, which is how containerd's typeurl calls it.
    pub(crate) fn pack(name: &str, message: &impl Message) -> Self {
        Self {
            type_url: name.to_owned(),
            value: message.encode_to_vec(),
        }
    }

    /// The content, if it is of that type, whatever stands before the last slash of its name.
    pub(crate) fn unpack<M: Message + Default>(&self, name: &str) -> Option<M> {
        let found = self.type_url.rsplit('/').next()?;
        (found == name).then(|| M::decode(&self.value[..]).ok())?
    }
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

impl Timestamp {
    /// The present moment.
    pub(crate) fn now() -> Self {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        }
    }
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Empty {}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

/// `ttrpc.Request`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    pub(crate) timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) metadata: Vec<KeyValue>,
}

/// `ttrpc.KeyValue`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

/// `ttrpc.Response`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) payload: Vec<u8>,
}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mount {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) source: String,
    #[prost(string, tag = "3")]
    pub(crate) target: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) options: Vec<String>,
}

/// `CreateTaskRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateTaskRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) bundle: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) rootfs: Vec<Mount>,
    #[prost(bool, tag = "4")]
    pub(crate) terminal: bool,
    #[prost(string, tag = "5")]
    pub(crate) stdin: String,
    #[prost(string, tag = "6")]
    pub(crate) stdout: String,
    #[prost(string, tag = "7")]
    pub(crate) stderr: String,
    #[prost(string, tag = "8")]
    pub(crate) checkpoint: String,
    #[prost(message, optional, tag = "10")]
    pub(crate) options: Option<Any>,
}

/// `ExecProcessRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ExecProcessRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
    #[prost(bool, tag = "3")]
    pub(crate) terminal: bool,
    #[prost(string, tag = "4")]
    pub(crate) stdin: String,
    #[prost(string, tag = "5")]
    pub(crate) stdout: String,
    #[prost(string, tag = "6")]
    pub(crate) stderr: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) spec: Option<Any>,
}

/// What most requests say: which process. `StartRequest`, `StateRequest`, `WaitRequest`, `DeleteRequest`; without an exec
/// id also `PidsRequest`, `PauseRequest`, `ResumeRequest`, `StatsRequest`, `ConnectRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ProcessRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// Empty: the container's first process.
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
}

/// `ResizePtyRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ResizePtyRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
    #[prost(uint32, tag = "3")]
    pub(crate) width: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) height: u32,
}

/// `KillRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct KillRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
    #[prost(uint32, tag = "3")]
    pub(crate) signal: u32,
    #[prost(bool, tag = "4")]
    pub(crate) all: bool,
}

/// `CloseIORequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CloseIoRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
    #[prost(bool, tag = "3")]
    pub(crate) stdin: bool,
}

/// `CheckpointTaskRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CheckpointTaskRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) path: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) options: Option<Any>,
}

/// `UpdateTaskRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpdateTaskRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// The resources as JSON.
    #[prost(message, optional, tag = "2")]
    pub(crate) resources: Option<Any>,
}

/// `CreateTaskResponse` and `StartResponse`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct PidResponse {
    #[prost(uint32, tag = "1")]
    pub(crate) pid: u32,
}

/// `DeleteResponse`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct DeleteResponse {
    #[prost(uint32, tag = "1")]
    pub(crate) pid: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) exit_status: u32,
    #[prost(message, optional, tag = "3")]
    pub(crate) exited_at: Option<Timestamp>,
}

/// `WaitResponse`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct WaitResponse {
    #[prost(uint32, tag = "1")]
    pub(crate) exit_status: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) exited_at: Option<Timestamp>,
}

/// `containerd.v1.types.Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum TaskStatus {
    /// Nobody knows.
    Unknown = 0,
    /// It waits for Start.
    Created = 1,
    /// It runs.
    Running = 2,
    /// It has ended.
    Stopped = 3,
    /// It is frozen.
    Paused = 4,
    /// It is being frozen.
    Pausing = 5,
}

/// `StateResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StateResponse {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) bundle: String,
    #[prost(uint32, tag = "3")]
    pub(crate) pid: u32,
    #[prost(enumeration = "TaskStatus", tag = "4")]
    pub(crate) status: i32,
    #[prost(string, tag = "5")]
    pub(crate) stdin: String,
    #[prost(string, tag = "6")]
    pub(crate) stdout: String,
    #[prost(string, tag = "7")]
    pub(crate) stderr: String,
    #[prost(bool, tag = "8")]
    pub(crate) terminal: bool,
    #[prost(uint32, tag = "9")]
    pub(crate) exit_status: u32,
    #[prost(message, optional, tag = "10")]
    pub(crate) exited_at: Option<Timestamp>,
    #[prost(string, tag = "11")]
    pub(crate) exec_id: String,
}

/// `PidsResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PidsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) processes: Vec<ProcessInfo>,
}

/// `containerd.v1.types.ProcessInfo`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProcessInfo {
    #[prost(uint32, tag = "1")]
    pub(crate) pid: u32,
    /// `ProcessDetails`, for one that Exec started.
    #[prost(message, optional, tag = "2")]
    pub(crate) info: Option<Any>,
}

/// `containerd.runc.v1.ProcessDetails`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ProcessDetails {
    #[prost(string, tag = "1")]
    pub(crate) exec_id: String,
}

/// `StatsResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatsResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) stats: Option<Any>,
}

/// `ConnectResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ConnectResponse {
    #[prost(uint32, tag = "1")]
    pub(crate) shim_pid: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) task_pid: u32,
    #[prost(string, tag = "3")]
    pub(crate) version: String,
}

/// Full name of [`RuncOptions`].
pub(crate) const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// `containerd.runc.v1.Options`: how the runtime is called.
#[derive(Clone, PartialEq, Eq, Message, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(crate) struct RuncOptions {
    #[prost(bool, tag = "1")]
    pub(crate) no_pivot_root: bool,
    #[prost(bool, tag = "2")]
    pub(crate) no_new_keyring: bool,
    #[prost(string, tag = "3")]
    pub(crate) shim_cgroup: String,
    #[prost(uint32, tag = "4")]
    pub(crate) io_uid: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) io_gid: u32,
    #[prost(string, tag = "6")]
    pub(crate) binary_name: String,
    #[prost(string, tag = "7")]
    pub(crate) root: String,
    #[prost(bool, tag = "9")]
    pub(crate) systemd_cgroup: bool,
    #[prost(string, tag = "11")]
    pub(crate) criu_work_path: String,
}

/// Full name of [`CheckpointOptions`].
pub(crate) const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// `containerd.runc.v1.CheckpointOptions`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CheckpointOptions {
    #[prost(bool, tag = "1")]
    pub(crate) exit: bool,
    #[prost(bool, tag = "2")]
    pub(crate) open_tcp: bool,
    #[prost(bool, tag = "3")]
    pub(crate) external_unix_sockets: bool,
    #[prost(bool, tag = "4")]
    pub(crate) terminal: bool,
    #[prost(bool, tag = "5")]
    pub(crate) file_locks: bool,
    #[prost(string, repeated, tag = "6")]
    pub(crate) empty_namespaces: Vec<String>,
    #[prost(string, tag = "7")]
    pub(crate) cgroups_mode: String,
    #[prost(string, tag = "8")]
    pub(crate) image_path: String,
    #[prost(string, tag = "9")]
    pub(crate) work_path: String,
    #[prost(string, tag = "10")]
    pub(crate) parent_path: String,
}

/// `containerd.runtime.bootstrap.v1.BootstrapParams`: what containerd 2.3 and later send to `start`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct BootstrapParams {
    #[prost(string, tag = "1")]
    pub(crate) instance_id: String,
    #[prost(string, tag = "2")]
    pub(crate) namespace: String,
    #[prost(message, repeated, tag = "8")]
    pub(crate) extensions: Vec<Extension>,
    #[prost(string, tag = "9")]
    pub(crate) socket_dir: String,
}

/// `containerd.runtime.bootstrap.v1.Extension`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Extension {
    #[prost(message, optional, tag = "1")]
    pub(crate) value: Option<Any>,
}

/// `containerd.types.RuntimeInfo`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RuntimeInfo {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) version: Option<RuntimeVersion>,
    #[prost(message, optional, tag = "3")]
    pub(crate) options: Option<Any>,
    #[prost(message, optional, tag = "4")]
    pub(crate) features: Option<Any>,
    #[prost(map = "string, string", tag = "5")]
    pub(crate) annotations: HashMap<String, String>,
}

/// `containerd.types.RuntimeVersion`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RuntimeVersion {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(string, tag = "2")]
    pub(crate) revision: String,
}

/// `containerd.services.events.ttrpc.v1.ForwardRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ForwardRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) envelope: Option<Envelope>,
}

/// `containerd.types.Envelope`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Envelope {
    #[prost(message, optional, tag = "1")]
    pub(crate) timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    pub(crate) namespace: String,
    #[prost(string, tag = "3")]
    pub(crate) topic: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) event: Option<Any>,
}

/// `containerd.events.TaskCreate`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskCreate {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(string, tag = "2")]
    pub(crate) bundle: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) rootfs: Vec<Mount>,
    #[prost(message, optional, tag = "4")]
    pub(crate) io: Option<TaskIo>,
    #[prost(string, tag = "5")]
    pub(crate) checkpoint: String,
    #[prost(uint32, tag = "6")]
    pub(crate) pid: u32,
}

/// `containerd.events.TaskIO`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TaskIo {
    #[prost(string, tag = "1")]
    pub(crate) stdin: String,
    #[prost(string, tag = "2")]
    pub(crate) stdout: String,
    #[prost(string, tag = "3")]
    pub(crate) stderr: String,
    #[prost(bool, tag = "4")]
    pub(crate) terminal: bool,
}

/// `containerd.events.TaskStart`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TaskStart {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(uint32, tag = "2")]
    pub(crate) pid: u32,
}

/// `containerd.events.TaskDelete`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskDelete {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(uint32, tag = "2")]
    pub(crate) pid: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) exit_status: u32,
    #[prost(message, optional, tag = "4")]
    pub(crate) exited_at: Option<Timestamp>,
    #[prost(string, tag = "5")]
    pub(crate) id: String,
}

/// `containerd.events.TaskExit`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskExit {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(string, tag = "2")]
    pub(crate) id: String,
    #[prost(uint32, tag = "3")]
    pub(crate) pid: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) exit_status: u32,
    #[prost(message, optional, tag = "5")]
    pub(crate) exited_at: Option<Timestamp>,
}

/// `containerd.events.TaskOOM`, `TaskPaused`, `TaskResumed`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TaskOnly {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
}

/// `containerd.events.TaskExecAdded`, and with a pid `TaskExecStarted`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TaskExec {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
    #[prost(uint32, tag = "3")]
    pub(crate) pid: u32,
}

/// `containerd.events.TaskCheckpointed`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TaskCheckpointed {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(string, tag = "2")]
    pub(crate) checkpoint: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_content_is_found_by_its_name_only() {
        let details = ProcessDetails {
            exec_id: "e".into(),
        };
        let packed = Any::pack("containerd.runc.v1.ProcessDetails", &details);
        assert_eq!(
            packed.unpack("containerd.runc.v1.ProcessDetails"),
            Some(details)
        );
        assert_eq!(packed.unpack::<RuncOptions>(RUNC_OPTIONS), None);
    }

    #[test]
    fn messages_are_encoded_as_protobuf_has_it() {
        let request = ProcessRequest {
            id: "ab".into(),
            exec_id: "c".into(),
        };
        assert_eq!(request.encode_to_vec(), b"\x0a\x02ab\x12\x01c");
    }
}
