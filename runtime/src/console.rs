//! Terminals: made inside the container, their master end handed to whoever holds the other end of a socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::failure::{CallFailed, During};
use crate::rootfs::mount::{fd_path, is_refused, put};
use crate::setup::fault::{At, Fault, Step};
use crate::spec::process::ConsoleSize;
use crate::sys;

/// Why a terminal cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A terminal without anybody to hold it.
    #[error("cannot allocate tty if runc will detach without setting console socket")]
    NoSocket,
    /// A socket without a terminal.
    #[error("cannot use console socket if runc will not detach or allocate tty")]
    UnusedSocket,
    /// A system call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
}

/// Where a terminal's master end goes, and with that who shows what is written to it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Holder<'a> {
    /// Whoever listens at the caller's socket: it gets a terminal as the kernel makes them.
    Caller(&'a OwnedFd),
    /// We ourselves, in the foreground of another terminal, which adds carriage returns of its own.
    Foreground(&'a OwnedFd),
}

impl<'a> Holder<'a> {
    /// The socket that leads there.
    pub(crate) fn socket(self) -> &'a OwnedFd {
        match self {
            Self::Caller(socket) | Self::Foreground(socket) => socket,
        }
    }
}

/// Connects to a socket that waits for a descriptor.
pub(crate) fn connect_socket(path: &Path) -> Result<OwnedFd, CallFailed> {
    // As in Go's net package: an at sign stands for the abstract namespace.
    let address = match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(path),
    };
    let address = address.during("connect", path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .during("socket", path)?;
    connect(&socket, &address).during("connect", path)?;
    Ok(socket)
}

/// Sends a descriptor with a text.
pub(crate) fn send_descriptor(socket: impl AsFd, text: &[u8], fd: impl AsFd) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        socket,
        &[IoSlice::new(text)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}

/// Receives a descriptor.
pub(crate) fn receive_descriptor(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 64];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.ok_or(Errno::BADMSG)
}

/// Makes a terminal in the container this process is in, sends its master end away and takes the other end as stdio and
/// controlling terminal. With `mount_console` it also becomes `/dev/console`.
pub(crate) fn attach_new(
    holder: Holder<'_>,
    size: Option<ConsoleSize>,
    mount_console: bool,
) -> Result<(), Fault> {
    let master = open_master().at(Step::Console, "open", "/dev/pts/ptmx")?;
    unlockpt(&master).at(Step::Console, "unlockpt", "/dev/pts/ptmx")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).at(Step::Console, "ioctl", "/dev/pts/ptmx")?;
    if let Some(size) = size {
        let size = Winsize {
            ws_row: size.height,
            ws_col: size.width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).at(Step::Console, "ioctl", "console size")?;
    }
    if matches!(holder, Holder::Foreground(_)) {
        // Here and not where it is received, because the program may write before that.
        let mut modes = tcgetattr(&slave).at(Step::Console, "tcgetattr", "")?;
        modes.output_modes &= !OutputModes::ONLCR;
        tcsetattr(&slave, OptionalActions::Now, &modes).at(Step::Console, "tcsetattr", "")?;
    }
    if mount_console {
        mount_on_console(&slave).at(Step::Console, "mount", "/dev/console")?;
    }
    send_descriptor(holder.socket(), b"/dev/ptmx", &master).at(
        Step::Console,
        "sendmsg",
        "console socket",
    )?;
    for stream in 0..3 {
        sys::process::replace_stdio(&slave, stream).at(Step::Console, "dup2", "")?;
    }
    sys::process::set_controlling_terminal(&slave).at(
        Step::Console,
        "ioctl",
        "controlling terminal",
    )
}

/// Opens the multiplexer of the container's own devpts, and checks that it is one (CVE-2025-52565).
fn open_master() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master = match openat(CWD, c"/dev/pts/ptmx", flags, Mode::empty()) {
        // A devpts without a multiplexer of its own, or a bound /dev.
        Err(Errno::NOENT | Errno::ACCESS) => openat(CWD, c"/dev/ptmx", flags, Mode::empty())?,
        other => other?,
    };
    let stat = fstat(&master)?;
    let is_multiplexer = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(5, 2);
    if is_multiplexer {
        Ok(master)
    } else {
        Err(Errno::NODEV)
    }
}

/// Binds the terminal on `/dev/console`, by descriptor on both sides.
fn mount_on_console(slave: &OwnedFd) -> Result<(), Errno> {
    let path = c"/dev/console";
    let place = match openat(
        CWD,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Err(Errno::NOENT) => {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::from_raw_mode(0o620))?
        }
        other => other?,
    };
    let copy = OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_EMPTY_PATH;
    match open_tree(slave, c"", copy).and_then(|tree| put(&tree, &place)) {
        Err(errno) if is_refused(errno) => sys::mount::mount(
            Some(&fd_path(slave)),
            &fd_path(&place),
            None,
            libc::MS_BIND,
            None,
        ),
        other => other,
    }
}
