//! criu as a service: one process for one conversation over a socket (`criu swrk FD`).
//!
//! The process is made by the one function that forks, because for a restore it needs a mount namespace of its own, in
//! which the container's root is put where criu wants it; whatever becomes of either process, the host's mounts stay as
//! they are.

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use super::Error;
use super::message::{self, Features, Kind, Response};
use super::wire::Message;
use crate::cgroup::Entry;
use crate::failure::During;
use crate::program;
use crate::rootfs::mount::c_path;
use crate::setup::fault::{At, Fault, Step};
use crate::setup::finish;
use crate::setup::handshake::{self, FromInit, InitEnd, ParentEnd, ToInit};
use crate::sys::process::{Child, clone_process, execve, keep_over_exec, replace_stdio};

/// Room for one answer; criu's are a few hundred bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// A conversation with criu. The process is ended when it is dropped.
#[derive(Debug)]
pub(super) struct Criu {
    child: Option<Child>,
    socket: OwnedFd,
    version: u32,
}

/// What the new process is given.
pub(super) struct Start<'a> {
    /// Whether it has our standard streams, which restored processes inherit, or none.
    pub(super) own_streams: bool,
    /// Descriptors it inherits, under the numbers they have here.
    pub(super) descriptors: &'a [OwnedFd],
    /// The way into its cgroup, if there is one by which it enters by itself.
    pub(super) entry: Option<&'a Entry<'a>>,
    /// What it does in a mount namespace of its own, if it gets one; it is in its cgroup by then.
    pub(super) inside: Option<&'a dyn Fn() -> Result<(), Fault>>,
}

impl Start<'_> {
    /// Nothing of ours, as for a dump.
    pub(super) const BARE: Self = Self {
        own_streams: false,
        descriptors: &[],
        entry: None,
        inside: None,
    };
}

/// What criu says in the course of a request.
pub(super) struct Notice<'a> {
    /// Which moment has come.
    pub(super) moment: &'a str,
    /// The process it is about; 0 for none.
    pub(super) pid: i32,
    /// A descriptor that came with it.
    pub(super) descriptor: Option<OwnedFd>,
}

impl Criu {
    /// Starts criu and asks for its version, which must be `least` or newer. `born` is called when there is a process, which
    /// waits until that has been done before it does anything of what `start` says.
    pub(super) fn start(
        start: &Start<'_>,
        least: u32,
        born: impl FnOnce(Pid) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let program = program::find("criu")
            .and_then(|program| c_path(&program).ok())
            .ok_or(Error::NotInstalled)?;
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .during("socketpair", "criu")?;
        let ends = handshake::pair().during("socketpair", "criu")?;
        let flags = match start.inside {
            Some(_) => crate::namespace::Kind::Mount.flag(),
            None => 0,
        };
        let (child, channel) =
            clone_process(flags, start.entry.and_then(Entry::birth), ends, |channel| {
                become_criu(&program, start, &theirs, &channel)
            })
            .during("clone3", "criu")?;
        drop(theirs);
        let mut criu = Self {
            child: Some(child),
            socket,
            version: 0,
        };
        criu.let_go(channel, born)?;
        criu.version = criu
            .ask(&message::version_request(), Kind::Version)
            .map_err(|source| Error::Version(Box::new(source)))?
            .version
            .unwrap_or(0);
        log::debug!("Using CRIU {}", criu.version);
        criu.need(least)?;
        Ok(criu)
    }

    /// Lets the process become criu once `born` has been done.
    ///
    /// Takes the conversation, which is over in any case when this returns: the process may be waiting for a word in it, and
    /// who drops it waits for the process.
    fn let_go(
        &self,
        channel: ParentEnd,
        born: impl FnOnce(Pid) -> Result<(), Error>,
    ) -> Result<(), Error> {
        born(self.pid().ok_or(Error::Protocol)?)?;
        // One that has ended already says why.
        let _ = channel.send(&ToInit::Go);
        // The channel closes when the program is executed.
        match channel.receive().during("recvmsg", "criu")? {
            Some(FromInit::Failed(fault)) => Err(Error::Start(fault)),
            _ => Ok(()),
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(|child| child.pid)
    }

    /// Its version as one number: 4.2.1 is 40201.
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// Requires a version.
    pub(super) fn need(&self, least: u32) -> Result<(), Error> {
        if self.version < least {
            return Err(Error::TooOld {
                version: self.version,
                least,
            });
        }
        Ok(())
    }

    /// Requires features of the kernel.
    pub(super) fn need_features(&self, wanted: Features) -> Result<(), Error> {
        let found = self
            .ask(&message::feature_request(wanted), Kind::FeatureCheck)
            .map_err(|source| Error::Features(Box::new(source)))?
            .features;
        let mut missing = Vec::new();
        if wanted.mem_track && !found.mem_track {
            missing.push("MemTrack");
        }
        if wanted.lazy_pages && !found.lazy_pages {
            missing.push("LazyPages");
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Error::MissingFeatures(missing.join(" ")))
        }
    }

    /// Sends a question and waits for its answer.
    fn ask(&self, question: &Message, kind: Kind) -> Result<Response, Error> {
        self.send(question)?;
        let (response, _) = self.receive()?;
        if response.kind() == kind {
            Ok(response)
        } else {
            Err(Error::Protocol)
        }
    }

    /// Makes a request and listens to what criu has to say until it is done, then waits for its end.
    ///
    /// A notice that fails makes criu give up; its error is what the request fails with.
    pub(super) fn request(
        mut self,
        kind: Kind,
        options: &message::Options,
        mut notice: impl FnMut(Notice<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        log::debug!("Using CRIU in {kind} mode");
        self.send(&message::request(kind, options))?;
        loop {
            let (response, descriptor) = self.receive()?;
            if response.kind() == kind {
                break;
            }
            let (Kind::Notify, Some((moment, pid))) = (response.kind(), &response.notify) else {
                return Err(Error::Protocol);
            };
            log::debug!("notify: {moment}");
            let heard = notice(Notice {
                moment,
                pid: *pid,
                descriptor,
            });
            let told = self.send(&message::notified(heard.is_ok()));
            heard?;
            told?;
        }
        self.finish(kind)
    }

    /// Waits for the end of the process.
    fn finish(&mut self, kind: Kind) -> Result<(), Error> {
        // No more is wanted: after a pre-dump criu would wait for the next one.
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write)
            .during("shutdown", "criu")?;
        let Some(child) = self.child.take() else {
            return Err(Error::Protocol);
        };
        let ended = rustix::io::retry_on_intr(|| waitpid(Some(child.pid), WaitOptions::empty()))
            .during("wait", "criu")?;
        let status = ended.map(|(_, status)| status);
        if kind == Kind::PreDump || status.is_some_and(|status| status.exit_status() == Some(0)) {
            return Ok(());
        }
        Err(Error::Ended(status.map_or(255, code)))
    }

    fn send(&self, message: &Message) -> Result<(), Error> {
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(
                &self.socket,
                &[IoSlice::new(message.bytes())],
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            )
        });
        match sent {
            Err(Errno::PIPE | Errno::CONNRESET) => Err(Error::Silent),
            other => Ok(other.map(drop).during("sendmsg", "criu")?),
        }
    }

    /// Waits for an answer; one that tells of a failure is an error.
    fn receive(&self) -> Result<(Response, Option<OwnedFd>), Error> {
        let mut bytes = vec![0; LONGEST_ANSWER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let (length, descriptor) = loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            match received {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(Error::Silent),
                other => break (other.during("recvmsg", "criu")?.bytes, first(&mut control)),
            }
        };
        if length == 0 {
            return Err(Error::Silent);
        }
        let response = Response::parse(&bytes[..length]).ok_or(Error::Protocol)?;
        if response.success {
            return Ok((response, descriptor));
        }
        Err(Error::Failed {
            kind: response.kind(),
            errno: response.errno,
        })
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            // It notices that nobody is there any more, and undoes what it has begun, as it cannot when it is killed.
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
            let _ = rustix::io::retry_on_intr(|| waitpid(Some(child.pid), WaitOptions::empty()));
        }
    }
}

/// The first descriptor of a message.
fn first(control: &mut RecvAncillaryBuffer<'_>) -> Option<OwnedFd> {
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// The exit code for how criu ended, as a shell has it.
fn code(status: WaitStatus) -> i32 {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(255)
}

/// In the new process: becomes criu. Returns only when that fails.
fn become_criu(program: &CString, start: &Start<'_>, socket: &OwnedFd, channel: &InitEnd) -> i32 {
    let Err(fault) = prepare(start, socket, channel).and_then(|()| {
        let arguments = [
            c"criu".to_owned(),
            c"swrk".to_owned(),
            CString::new(socket.as_raw_fd().to_string()).unwrap_or_default(),
        ];
        let environment: Vec<CString> = std::env::vars_os()
            .filter_map(|(name, value)| {
                CString::new([name.into_vec(), b"=".to_vec(), value.into_vec()].concat()).ok()
            })
            .collect();
        let errno = execve(program, &arguments, &environment);
        Err::<std::convert::Infallible, _>(errno).at(
            Step::Exec,
            "execve",
            &program.to_string_lossy(),
        )
    });
    // The parent may be gone; then nobody wants to know.
    let _ = channel.send_fault(&fault);
    1
}

/// In the new process: makes the surroundings that criu is to find.
fn prepare(start: &Start<'_>, socket: &OwnedFd, channel: &InitEnd) -> Result<(), Fault> {
    // Our foreground holds signals back, which criu and what it restores would inherit.
    finish::begin(start.entry)?;
    channel
        .expect(&ToInit::Go)
        .at(Step::Handshake, "recvmsg", "")?;
    if let Some(inside) = start.inside {
        inside()?;
    }
    for descriptor in start.descriptors.iter().chain([socket]) {
        keep_over_exec(descriptor.as_raw_fd()).at(Step::Descriptors, "fcntl", "")?;
    }
    if start.own_streams {
        return Ok(());
    }
    let null = openat(
        CWD,
        c"/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Step::Descriptors, "open", "/dev/null")?;
    for stream in 0..3 {
        replace_stdio(null.as_fd(), stream).at(Step::Descriptors, "dup2", "")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_before_the_word_lets_the_process_end() {
        let flags = SocketFlags::CLOEXEC;
        let sockets = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let ends = handshake::pair().unwrap();
        // Only system calls in the child: other tests' threads may hold the allocator's lock.
        let (child, channel) = clone_process(0, None, ends, |channel| {
            i32::from(rustix::io::read(channel.fd(), &mut [0]) != Ok(0))
        })
        .unwrap();
        let pid = child.pid;
        let criu = Criu {
            child: Some(child),
            socket: sockets.unwrap().0,
            version: 0,
        };
        let told = criu.let_go(channel, |_| Err(Error::Protocol));
        assert!(matches!(told, Err(Error::Protocol)));
        // Would wait for ever for a process that waits for a word.
        drop(criu);
        let again = waitpid(Some(pid), WaitOptions::NOHANG);
        assert_eq!(again.err(), Some(Errno::CHILD));
    }
}
