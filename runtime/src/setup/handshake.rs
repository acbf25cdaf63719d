//! The conversation between `qrun` and the process that becomes the container.
//!
//! ```text
//!  parent (qrun create, run)                       child (container init)
//!  ─────────────────────────                       ──────────────────────
//!  state directory, fifo; on cgroup v2 the cgroup
//!  clone3 ────────────────────────────────────────▶ born in its namespaces (and v2 cgroup)
//!  writes state.json                                opens what only the caller may open
//!  writes id maps ── Mapped ──────────────────────▶ (user namespace only) becomes root in it
//!  v1: makes cgroups, joins the child               mounts
//!      ── Joined(paths) ──────────────────────────▶ (only if it has a cgroup mount or namespace)
//!  ◀──────────────────────────────── RunHooks ──    (only if there are such hooks)
//!  prestart, createRuntime hooks
//!      ── HooksDone ──────────────────────────────▶ createContainer hooks, pivot, masks, identity …
//!  ◀───────────────────────── Listener(+fd) ────    (only with SCMP_ACT_NOTIFY)
//!  gives it to the agent ── ListenerTaken ────────▶
//!  ◀──────────────────────────────────── Ready ──
//!  pid file
//!      ── Go ─────────────────────────────────────▶ waits on the fifo (create), startContainer hooks, exec
//! ```
//!
//! Where an existing pid or user namespace has to be joined first, a short-lived process stands between the two and
//! reports `Forked(pid)` of the real child, which is the parent's child too (`CLONE_PARENT`). At any point the child may
//! say `Failed`; then it ends. Either side that finds the other gone ends as well: nothing waits for ever. `exec` uses
//! the same messages, with Joined, Ready and Go only.
//!
//! Messages are datagrams of a `SOCK_SEQPACKET` pair: a tag byte, then fields.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::failure;

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// Joining a namespace.
    Namespace,
    /// Making a namespace.
    Unshare,
    /// Becoming root of a user namespace.
    UserNamespace,
    /// Talking with the parent.
    Handshake,
    /// Setting the propagation and binding the root.
    PrepareRoot,
    /// A mount of the spec.
    Mount,
    /// A device file or link in `/dev`.
    Device,
    /// A hook inside; the subject has its words.
    Hook,
    /// Changing the root.
    Pivot,
    /// The terminal.
    Console,
    /// Making the root read-only.
    ReadonlyRoot,
    /// A read-only path.
    ReadonlyPath,
    /// A masked path.
    MaskPath,
    /// The host or domain name.
    Hostname,
    /// A kernel parameter.
    Sysctl,
    /// The loopback interface.
    Network,
    /// The session keyring.
    Keyring,
    /// A security module's label.
    Label,
    /// A resource limit.
    Rlimit,
    /// Scheduling policy, I/O priority, personality.
    Scheduling,
    /// Capability sets.
    Capabilities,
    /// User and groups.
    User,
    /// The working directory.
    WorkingDirectory,
    /// The system call filter.
    Seccomp,
    /// Descriptors.
    Descriptors,
    /// Looking for the program.
    Program,
    /// Waiting for `start`.
    Start,
    /// Executing the program.
    Exec,
}

impl Step {
    /// Every step, for decoding.
    const ALL: [Self; 28] = [
        Self::Namespace,
        Self::Unshare,
        Self::UserNamespace,
        Self::Handshake,
        Self::PrepareRoot,
        Self::Mount,
        Self::Device,
        Self::Hook,
        Self::Pivot,
        Self::Console,
        Self::ReadonlyRoot,
        Self::ReadonlyPath,
        Self::MaskPath,
        Self::Hostname,
        Self::Sysctl,
        Self::Network,
        Self::Keyring,
        Self::Label,
        Self::Rlimit,
        Self::Scheduling,
        Self::Capabilities,
        Self::User,
        Self::WorkingDirectory,
        Self::Seccomp,
        Self::Descriptors,
        Self::Program,
        Self::Start,
        Self::Exec,
    ];
}

/// What failed in the child: the step, the call, what it was about and the kernel's answer. No prose crosses the socket;
/// the words are put around it here, on the parent's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What it was doing.
    pub(crate) step: Step,
    /// The system call.
    pub(crate) call: String,
    /// A path, mostly.
    pub(crate) subject: String,
    /// The kernel's answer; 0 when the subject says it all.
    pub(crate) errno: i32,
}

impl std::error::Error for Fault {}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            step,
            call,
            subject,
            errno,
        } = self;
        let errno_text = match *errno {
            0 => String::new(),
            errno => failure::text(Errno::from_raw_os_error(errno)),
        };
        let why = format!("{call}: {errno_text}");
        match step {
            Step::Namespace => write!(formatter, "error joining namespace {subject}: {why}"),
            Step::Unshare => write!(formatter, "error making namespace {subject}: {why}"),
            Step::UserNamespace => write!(
                formatter,
                "error becoming root of the user namespace: {why}"
            ),
            Step::Handshake => write!(formatter, "error talking with qrun: {why}"),
            Step::PrepareRoot => write!(formatter, "error preparing rootfs {subject:?}: {why}"),
            Step::Mount => write!(formatter, "error mounting {subject}: {why}"),
            Step::Device => write!(
                formatter,
                "error creating device nodes: {call} {subject}: {errno_text}"
            ),
            Step::Hook => formatter.write_str(subject),
            Step::Pivot => write!(formatter, "error jailing process inside rootfs: {why}"),
            Step::Console => write!(
                formatter,
                "error setting up console: {call} {subject}: {errno_text}"
            ),
            Step::ReadonlyRoot => write!(formatter, "error setting rootfs as readonly: {why}"),
            Step::ReadonlyPath => write!(formatter, "can't make {subject:?} read-only: {why}"),
            Step::MaskPath => write!(formatter, "can't mask path {subject:?}: {why}"),
            Step::Hostname => write!(formatter, "{call}: {errno_text}"),
            Step::Sysctl => write!(formatter, "can't set sysctl {subject}: {why}"),
            Step::Network => write!(formatter, "error bringing up the loopback interface: {why}"),
            Step::Keyring => write!(formatter, "unable to join session keyring: {why}"),
            Step::Label => write!(
                formatter,
                "unable to apply security label {subject:?}: {why}"
            ),
            Step::Rlimit => write!(
                formatter,
                "error setting rlimit type {subject}: {errno_text}"
            ),
            Step::Scheduling => write!(formatter, "unable to set {subject}: {why}"),
            Step::Capabilities => write!(formatter, "unable to apply caps: {why}"),
            Step::User => write!(
                formatter,
                "unable to setup user: {call} {subject}: {errno_text}"
            ),
            Step::WorkingDirectory if *errno == 0 => formatter.write_str(subject),
            Step::WorkingDirectory => {
                write!(
                    formatter,
                    "chdir to cwd ({subject:?}) set in config.json failed: {errno_text}"
                )
            }
            Step::Seccomp => write!(formatter, "error loading seccomp filter: {why}"),
            Step::Descriptors => {
                write!(formatter, "error marking descriptors close-on-exec: {why}")
            }
            Step::Program if *errno == Errno::NOENT.raw_os_error() && !subject.contains('/') => {
                write!(
                    formatter,
                    "exec: {subject:?}: executable file not found in $PATH"
                )
            }
            Step::Program if *errno == Errno::ACCESS.raw_os_error() => {
                write!(formatter, "exec: {subject:?}: {errno_text}")
            }
            Step::Program => write!(
                formatter,
                "exec: {subject:?}: {call} {subject}: {errno_text}"
            ),
            Step::Start => write!(formatter, "error waiting for start: {why}"),
            Step::Exec => write!(formatter, "exec {subject}: {errno_text}"),
        }
    }
}

/// Names step and subject in the error of a system call of the child.
pub(crate) trait At<T> {
    /// Says what was being done, by which call, on what.
    fn at(self, step: Step, call: &'static str, subject: &str) -> Result<T, Fault>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step, call: &'static str, subject: &str) -> Result<T, Fault> {
        self.map_err(|errno| Fault {
            step,
            call: call.into(),
            subject: subject.into(),
            errno: errno.raw_os_error(),
        })
    }
}

impl Fault {
    /// As a datagram's fields.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.step as u8];
        bytes.extend_from_slice(&self.errno.to_le_bytes());
        bytes.extend_from_slice(self.call.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.subject.as_bytes());
        bytes
    }

    /// From a datagram's fields.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (step, rest) = bytes.split_first()?;
        let step = *Step::ALL.get(usize::from(*step))?;
        let (errno, rest) = rest.split_first_chunk::<4>()?;
        let errno = Some(i32::from_le_bytes(*errno)).filter(|errno| (0..4096).contains(errno))?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Self {
            step,
            errno,
            call: text(&rest[..end]),
            subject: text(&rest[end + 1..]),
        })
    }
}

/// What the child says.
#[derive(Debug)]
pub(crate) enum FromInit {
    /// The intermediate process has made the real child.
    Forked(i32),
    /// Mounts are in place: time for the hooks outside.
    RunHooks,
    /// The seccomp listener.
    Listener(OwnedFd),
    /// All is set up but for exec.
    Ready,
    /// It failed, and ends.
    Failed(Fault),
}

/// What the parent says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToInit {
    /// The user namespace has its mappings.
    Mapped,
    /// The child is in its cgroup: pairs of controller name and directory.
    Joined(Vec<(String, String)>),
    /// The hooks outside have succeeded.
    HooksDone,
    /// The agent has the listener.
    ListenerTaken,
    /// Go on to exec.
    Go,
}

/// Longest datagram: a fault with its path, or the cgroup paths of a dozen hierarchies.
const MAX_MESSAGE: usize = 16 * 1024;

/// The parent's end.
#[derive(Debug)]
pub(crate) struct ParentEnd(OwnedFd);

/// The child's end.
#[derive(Debug)]
pub(crate) struct InitEnd(OwnedFd);

/// Both ends of a new conversation.
pub(crate) fn pair() -> Result<(ParentEnd, InitEnd), Errno> {
    let (parent, init) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((ParentEnd(parent), InitEnd(init)))
}

/// Sends a datagram, perhaps with a descriptor.
fn send(
    socket: BorrowedFd<'_>,
    tag: u8,
    body: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let tag = [tag];
    sendmsg(
        socket,
        &[IoSlice::new(&tag), IoSlice::new(body)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives a datagram; an empty one means that the other side is gone.
fn receive(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<(Vec<u8>, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MAX_MESSAGE];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let length = loop {
        match recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags,
        ) {
            Err(Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((bytes[..length].to_vec(), fd))
}

impl ParentEnd {
    /// Says something to the child. That it is gone is found when its answer is waited for.
    pub(crate) fn send(&self, message: &ToInit) -> Result<(), Errno> {
        let (tag, body) = match message {
            ToInit::Mapped => (1, Vec::new()),
            ToInit::Joined(paths) => (
                2,
                paths
                    .iter()
                    .flat_map(|(name, path)| format!("{name}\0{path}\0").into_bytes())
                    .collect(),
            ),
            ToInit::HooksDone => (3, Vec::new()),
            ToInit::ListenerTaken => (4, Vec::new()),
            ToInit::Go => (5, Vec::new()),
        };
        match send(self.0.as_fd(), tag, &body, None) {
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            other => other,
        }
    }

    /// Waits for what the child says; `None` when it is gone, by exec or by death.
    pub(crate) fn receive(&self) -> Result<Option<FromInit>, Errno> {
        self.receive_with(RecvFlags::empty())
    }

    /// What the child has said already, if anything.
    pub(crate) fn receive_now(&self) -> Result<Option<FromInit>, Errno> {
        match self.receive_with(RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => Ok(None),
            other => other,
        }
    }

    /// Receives and decodes.
    fn receive_with(&self, flags: RecvFlags) -> Result<Option<FromInit>, Errno> {
        let (bytes, fd) = match receive(self.0.as_fd(), flags) {
            Err(Errno::CONNRESET) => return Ok(None),
            other => other?,
        };
        let Some((tag, body)) = bytes.split_first() else {
            return Ok(None);
        };
        let message = match (tag, fd) {
            (1, _) => body
                .first_chunk()
                .map(|pid| FromInit::Forked(i32::from_le_bytes(*pid))),
            (2, _) => Some(FromInit::RunHooks),
            (3, Some(fd)) => Some(FromInit::Listener(fd)),
            (4, _) => Some(FromInit::Ready),
            (5, _) => Fault::decode(body).map(FromInit::Failed),
            _ => None,
        };
        message.map(Some).ok_or(Errno::PROTO)
    }
}

impl InitEnd {
    /// Another descriptor of the same end.
    pub(crate) fn duplicate(&self) -> Result<Self, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 3).map(Self)
    }

    /// Reports the real child.
    pub(crate) fn send_forked(&self, pid: i32) -> Result<(), Errno> {
        send(self.0.as_fd(), 1, &pid.to_le_bytes(), None)
    }

    /// Asks for the hooks outside.
    pub(crate) fn send_run_hooks(&self) -> Result<(), Errno> {
        send(self.0.as_fd(), 2, &[], None)
    }

    /// Hands the seccomp listener over.
    pub(crate) fn send_listener(&self, listener: BorrowedFd<'_>) -> Result<(), Errno> {
        send(self.0.as_fd(), 3, &[], Some(listener))
    }

    /// Says that all is set up.
    pub(crate) fn send_ready(&self) -> Result<(), Errno> {
        send(self.0.as_fd(), 4, &[], None)
    }

    /// Says what failed.
    pub(crate) fn send_fault(&self, fault: &Fault) -> Result<(), Errno> {
        send(self.0.as_fd(), 5, &fault.encode(), None)
    }

    /// Waits for one particular message; ECONNRESET when the parent is gone, EPROTO when it says something else.
    pub(crate) fn expect(&self, expected: &ToInit) -> Result<(), Errno> {
        if self.receive()? == *expected {
            Ok(())
        } else {
            Err(Errno::PROTO)
        }
    }

    /// Waits for what the parent says.
    pub(crate) fn receive(&self) -> Result<ToInit, Errno> {
        let (bytes, _) = receive(self.0.as_fd(), RecvFlags::empty())?;
        let (tag, body) = bytes.split_first().ok_or(Errno::CONNRESET)?;
        Ok(match tag {
            1 => ToInit::Mapped,
            2 => {
                let mut fields = body
                    .split(|byte| *byte == 0)
                    .map(|field| String::from_utf8_lossy(field).into_owned());
                let mut paths = Vec::new();
                while let (Some(name), Some(path)) = (fields.next(), fields.next()) {
                    paths.push((name, path));
                }
                ToInit::Joined(paths)
            }
            3 => ToInit::HooksDone,
            4 => ToInit::ListenerTaken,
            5 => ToInit::Go,
            _ => return Err(Errno::PROTO),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_decode_to_themselves() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(step as u8), index);
        }
        let fault = Fault {
            step: Step::Mount,
            call: "mount".into(),
            subject: "\"a\" to \"b\"".into(),
            errno: 2,
        };
        assert_eq!(Fault::decode(&fault.encode()), Some(fault));
        assert_eq!(Fault::decode(&[255, 0, 0, 0, 0, 0]), None);
        assert_eq!(Fault::decode(&[1, 0]), None);
    }

    #[test]
    fn faults_read_as_runc_says_it() {
        let missing = Err::<(), _>(Errno::NOENT)
            .at(Step::Program, "stat", "foo")
            .unwrap_err();
        assert_eq!(
            missing.to_string(),
            "exec: \"foo\": executable file not found in $PATH"
        );
        let missing = Err::<(), _>(Errno::NOENT)
            .at(Step::Program, "stat", "/foo")
            .unwrap_err();
        assert_eq!(
            missing.to_string(),
            "exec: \"/foo\": stat /foo: no such file or directory"
        );
    }

    #[test]
    fn a_fault_without_error_number_is_its_subject() {
        let fault = Fault {
            step: Step::Hook,
            call: String::new(),
            subject: "it failed".into(),
            errno: 0,
        };
        assert_eq!(fault.to_string(), "it failed");
    }

    #[test]
    fn messages_arrive_as_sent() {
        let (parent, init) = pair().unwrap();
        let joined = ToInit::Joined(vec![
            ("memory".into(), "/sys/fs/cgroup/memory/x".into()),
            (String::new(), "/y".into()),
        ]);
        parent.send(&joined).unwrap();
        assert_eq!(init.receive().unwrap(), joined);
        parent.send(&ToInit::Go).unwrap();
        assert_eq!(init.expect(&ToInit::Mapped), Err(Errno::PROTO));
        let null = std::fs::File::open("/dev/null").unwrap();
        init.send_listener(null.as_fd()).unwrap();
        assert!(matches!(
            parent.receive().unwrap(),
            Some(FromInit::Listener(_))
        ));
        assert!(parent.receive_now().unwrap().is_none());
        drop(init);
        assert!(parent.receive().unwrap().is_none());
    }
}
