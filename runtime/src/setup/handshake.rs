//! The conversation between `qrun` and the process that becomes the container.
//!
//! ```text
//!  parent (qrun create, run)                       child (container init)
//!  ─────────────────────────                       ──────────────────────
//!  state directory, fifo, state.json, cgroup
//!  clone3 ────────────────────────────────────────▶ born in its namespaces (and v2 cgroup), enters its v1 cgroups
//!  writes state.json                                opens what only the caller may: the root
//!  writes id maps ── Mapped ──────────────────────▶ (user namespace only) becomes root in it
//!  puts it into its cgroup if it could not enter,   mounts
//!  or systemd makes the cgroup around it
//!  (for others than root: before the id maps)
//!  ◀─────────────────────── OpenSource(index) ──    (for each bind mount that takes the caller's rights)
//!  opens it in the child's mount namespace
//!      ── Source(+fd) ────────────────────────────▶
//!      ── Joined(paths) ──────────────────────────▶ (only if it waits for that, or for its limits)
//!  ◀──────────────────────────────── RunHooks ──    (only if there are such hooks)
//!  prestart, createRuntime hooks
//!      ── HooksDone ──────────────────────────────▶ createContainer hooks, pivot, masks, identity …
//!  ◀───────── Listener(+fd) or ListenerAt(n) ────    (only with SCMP_ACT_NOTIFY)
//!  gives it to the agent ── ListenerTaken ────────▶
//!  ◀──────────────────────────────────── Ready ──
//!  pid file
//!      ── Go ─────────────────────────────────────▶ waits on the fifo (create), startContainer hooks, exec
//! ```
//!
//! Where there is nothing to do between Ready and Go, Go is said ahead, before Ready is waited for: then the child does not
//! wait for the parent to wake up.
//!
//! Where an existing pid or user namespace, or with a user namespace any other, has to be joined first, a short-lived
//! process stands between the two and reports `Forked(pid)` of the real child, which is the parent's child too
//! (`CLONE_PARENT`). At any point the child may say `Failed`; then it ends. Either side that finds the other gone ends as
//! well: nothing waits for ever. `exec` uses the same messages but Mapped, OpenSource, Source, RunHooks and HooksDone.
//!
//! Messages are datagrams of a `SOCK_SEQPACKET` pair: a tag byte, then fields.

use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::fault::Fault;
use crate::rootfs::mount::source::{Form, Source};

/// What the child says.
#[derive(Debug)]
pub(crate) enum FromInit {
    /// The intermediate process has made the real child.
    Forked(i32),
    /// The source of this mount, by its index, takes the caller's rights to open.
    OpenSource(usize, Form),
    /// Mounts are in place: time for the hooks outside.
    RunHooks,
    /// The seccomp listener.
    Listener(OwnedFd),
    /// The number that the seccomp listener has in the child.
    ListenerAt(i32),
    /// All is set up but for exec.
    Ready,
    /// It failed, and ends.
    Failed(Fault),
}

/// What the parent says.
#[derive(Debug)]
pub(crate) enum ToInit {
    /// The user namespace has its mappings.
    Mapped,
    /// The child is in its cgroup: pairs of controller name and directory.
    Joined(Vec<(String, String)>),
    /// The source that was asked for.
    Source(Source),
    /// The hooks outside have succeeded.
    HooksDone,
    /// The agent has the listener.
    ListenerTaken,
    /// Go on to exec.
    Go,
}

/// The parent's end.
#[derive(Debug)]
pub(crate) struct ParentEnd(OwnedFd);

/// The child's end.
#[derive(Debug)]
pub(crate) struct InitEnd {
    socket: OwnedFd,
    /// `Go` has come, ahead of what is waited for.
    may_go: Cell<bool>,
}

/// Both ends of a new conversation.
pub(crate) fn pair() -> Result<(ParentEnd, InitEnd), Errno> {
    let (parent, init) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let init = InitEnd {
        socket: init,
        may_go: Cell::new(false),
    };
    Ok((ParentEnd(parent), init))
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
    // How long it is comes first: room for the longest is several pages of memory.
    let look = flags | RecvFlags::PEEK | RecvFlags::TRUNC;
    let length = receive_into(socket, &mut [], &mut RecvAncillaryBuffer::default(), look)?;
    let mut bytes = vec![0; length];
    if length > 0 {
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        receive_into(socket, &mut bytes, &mut control, flags)?;
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((bytes, fd))
}

/// recvmsg(2) until no signal comes in between.
fn receive_into(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    control: &mut RecvAncillaryBuffer<'_>,
    flags: RecvFlags,
) -> Result<usize, Errno> {
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(bytes)], control, flags) {
            Err(Errno::INTR) => {}
            other => return Ok(other?.bytes),
        }
    }
}

impl ParentEnd {
    /// Says something to the child. That it is gone is found when its answer is waited for.
    pub(crate) fn send(&self, message: &ToInit) -> Result<(), Errno> {
        let mut fd = None;
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
            ToInit::Source(source) => {
                fd = Some(source.fd.as_fd());
                (6, vec![u8::from(source.is_detached)])
            }
        };
        match send(self.0.as_fd(), tag, &body, fd) {
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

    /// The fault that the child has told already, if it has: after something else failed, it is likely to be the cause.
    pub(crate) fn fault_now(&self) -> Option<Fault> {
        loop {
            match self.receive_now() {
                Ok(Some(FromInit::Failed(fault))) => return Some(fault),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Receives and decodes.
    fn receive_with(&self, flags: RecvFlags) -> Result<Option<FromInit>, Errno> {
        let mut received = receive(self.0.as_fd(), flags);
        if matches!(received, Err(Errno::CONNRESET)) {
            // The child ended without having read all we said. That is told once, ahead of what it has said itself.
            received = receive(self.0.as_fd(), flags);
        }
        let (bytes, fd) = match received {
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
            (6, _) => body.first_chunk().and_then(|index| {
                let index = usize::try_from(u64::from_le_bytes(*index)).ok()?;
                let form = match body.last()? {
                    0 => Form::Detached,
                    _ => Form::InPlace,
                };
                Some(FromInit::OpenSource(index, form))
            }),
            (7, _) => body
                .first_chunk()
                .map(|number| FromInit::ListenerAt(i32::from_le_bytes(*number))),
            _ => None,
        };
        message.map(Some).ok_or(Errno::PROTO)
    }
}

impl InitEnd {
    /// Its descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Another descriptor of the same end.
    pub(crate) fn duplicate(&self) -> Result<Self, Errno> {
        Ok(Self {
            socket: rustix::io::fcntl_dupfd_cloexec(&self.socket, 3)?,
            may_go: self.may_go.clone(),
        })
    }

    /// Says something, with write(2): it is the one call that a filter never asks its listener about, so that what is said
    /// after the filter is in force waits for no answer.
    fn say(&self, tag: u8, body: &[u8]) -> Result<(), Errno> {
        let bytes = [&[tag], body].concat();
        rustix::io::retry_on_intr(|| rustix::io::write(&self.socket, &bytes)).map(drop)
    }

    /// Reports the real child.
    pub(crate) fn send_forked(&self, pid: i32) -> Result<(), Errno> {
        self.say(1, &pid.to_le_bytes())
    }

    /// Asks for the hooks outside.
    pub(crate) fn send_run_hooks(&self) -> Result<(), Errno> {
        self.say(2, &[])
    }

    /// Hands the seccomp listener over.
    pub(crate) fn send_listener(&self, listener: BorrowedFd<'_>) -> Result<(), Errno> {
        send(self.socket.as_fd(), 3, &[], Some(listener))
    }

    /// Says which number the seccomp listener has: for a process that may not call sendmsg(2) until somebody listens.
    pub(crate) fn send_listener_number(&self, listener: BorrowedFd<'_>) -> Result<(), Errno> {
        self.say(7, &listener.as_raw_fd().to_le_bytes())
    }

    /// Says that all is set up.
    pub(crate) fn send_ready(&self) -> Result<(), Errno> {
        self.say(4, &[])
    }

    /// Says what failed.
    pub(crate) fn send_fault(&self, fault: &Fault) -> Result<(), Errno> {
        self.say(5, &fault.encode())
    }

    /// Asks for the source of a mount.
    pub(crate) fn send_open_source(&self, index: usize, form: Form) -> Result<(), Errno> {
        let mut body = (index as u64).to_le_bytes().to_vec();
        body.push(u8::from(form == Form::InPlace));
        self.say(6, &body)
    }

    /// Waits for one particular message without content; ECONNRESET when the parent is gone, EPROTO when it says something
    /// else.
    pub(crate) fn expect(&self, expected: &ToInit) -> Result<(), Errno> {
        let said = match expected {
            ToInit::Go if self.may_go.get() => return Ok(()),
            ToInit::Go => self.read()?,
            _ => self.receive()?,
        };
        if std::mem::discriminant(&said) == std::mem::discriminant(expected) {
            Ok(())
        } else {
            Err(Errno::PROTO)
        }
    }

    /// Waits for what the parent says before `Go`.
    pub(crate) fn receive(&self) -> Result<ToInit, Errno> {
        loop {
            match self.read()? {
                ToInit::Go => self.may_go.set(true),
                said => return Ok(said),
            }
        }
    }

    /// Waits for the next message.
    fn read(&self) -> Result<ToInit, Errno> {
        let (bytes, fd) = receive(self.socket.as_fd(), RecvFlags::empty())?;
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
            6 => ToInit::Source(Source {
                fd: fd.ok_or(Errno::PROTO)?,
                is_detached: body == [1],
            }),
            _ => return Err(Errno::PROTO),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::fault::Step;

    #[test]
    fn messages_arrive_as_sent() {
        let (parent, init) = pair().unwrap();
        let paths = vec![
            ("memory".to_owned(), "/sys/fs/cgroup/memory/x".to_owned()),
            (String::new(), "/y".into()),
        ];
        parent.send(&ToInit::Joined(paths.clone())).unwrap();
        let ToInit::Joined(joined) = init.receive().unwrap() else {
            panic!("not Joined");
        };
        assert_eq!(joined, paths);
        let source = Source {
            fd: std::fs::File::open("/dev/null").unwrap().into(),
            is_detached: true,
        };
        parent.send(&ToInit::Source(source)).unwrap();
        assert!(matches!(
            init.receive().unwrap(),
            ToInit::Source(source) if source.is_detached
        ));
        init.send_open_source(7, Form::InPlace).unwrap();
        assert!(matches!(
            parent.receive().unwrap(),
            Some(FromInit::OpenSource(7, Form::InPlace))
        ));
        parent.send(&ToInit::HooksDone).unwrap();
        assert_eq!(init.expect(&ToInit::Mapped), Err(Errno::PROTO));
        let null = std::fs::File::open("/dev/null").unwrap();
        init.send_listener(null.as_fd()).unwrap();
        assert!(matches!(
            parent.receive().unwrap(),
            Some(FromInit::Listener(_))
        ));
        assert!(parent.receive_now().unwrap().is_none());
        init.send_listener_number(null.as_fd()).unwrap();
        let number = null.as_raw_fd();
        assert!(
            matches!(parent.receive().unwrap(), Some(FromInit::ListenerAt(at)) if at == number)
        );
        drop(init);
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn go_may_be_said_ahead() {
        let (parent, init) = pair().unwrap();
        parent.send(&ToInit::Go).unwrap();
        parent.send(&ToInit::HooksDone).unwrap();
        assert_eq!(init.expect(&ToInit::HooksDone), Ok(()));
        assert_eq!(init.expect(&ToInit::Go), Ok(()));
        let (parent, init) = pair().unwrap();
        parent.send(&ToInit::HooksDone).unwrap();
        assert_eq!(init.expect(&ToInit::Go), Err(Errno::PROTO));
    }

    #[test]
    fn a_fault_is_told_though_the_child_did_not_listen() {
        let (parent, init) = pair().unwrap();
        parent.send(&ToInit::Go).unwrap();
        let fault = Fault {
            step: Step::Mount,
            call: "mount".into(),
            subject: "x".into(),
            errno: libc::ENODEV,
        };
        init.send_fault(&fault).unwrap();
        drop(init);
        assert!(matches!(
            parent.receive().unwrap(),
            Some(FromInit::Failed(_))
        ));
        assert!(parent.receive().unwrap().is_none());
    }
}
