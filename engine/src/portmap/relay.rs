//! Moves bytes between two connected sockets until both directions have ended.
//!
//! An end of input on one side becomes an end of output on the other, and the opposite direction goes on. What one
//! side does not take is not read from the other: the window closes as if the two were connected. Small transfers go
//! through one buffer that all connections share; one that turns out large gets a pipe, through which the kernel moves
//! pages without copying them.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop::consume_budget;

use super::budget::Budget;

/// What is read at once.
const BUFFER: usize = 256 * 1024;

/// So much in one direction makes a pipe worth its two descriptors.
const LARGE: u64 = 1024 * 1024;

/// Bytes that a pipe holds; the most that an unprivileged process may ask for, too.
const PIPE: usize = 1024 * 1024;

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// Relays until both directions have ended, or one has failed.
pub(super) async fn relay(one: &TcpStream, other: &TcpStream, budget: &Budget) -> io::Result<()> {
    tokio::try_join!(pump(one, other, budget), pump(other, one, budget)).map(drop)
}

/// One direction.
async fn pump(from: &TcpStream, to: &TcpStream, budget: &Budget) -> io::Result<()> {
    let mut moved = 0;
    while moved < LARGE {
        // So that one busy connection leaves time for the others.
        consume_budget().await;
        match copy_once(from, to).await? {
            0 => return end(to),
            count => moved += count,
        }
    }
    match Pipe::new(budget) {
        Some(pipe) => while pipe.move_once(from, to).await? > 0 {},
        // No descriptors to spare: slower, but just as well.
        None => {
            while copy_once(from, to).await? > 0 {
                consume_budget().await;
            }
        }
    }
    end(to)
}

/// Passes an end of input on. A peer that has gone altogether needs no telling.
fn end(to: &TcpStream) -> io::Result<()> {
    match shutdown(to, Shutdown::Write) {
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Moves what there is, once it is there; 0 at the end of input.
async fn copy_once(from: &TcpStream, to: &TcpStream) -> io::Result<u64> {
    loop {
        from.readable().await?;
        let step = SHARED.with_borrow_mut(|buffer| copy_what_fits(from, to, buffer));
        let (count, rest) = match step {
            Err(error) if is_temporary(&error) => continue,
            other => other?,
        };
        write_all(to, &rest).await?;
        return Ok(u64::try_from(count).unwrap_or(u64::MAX));
    }
}

/// Reads once, and writes what the other side takes at once; the rest is the caller's.
fn copy_what_fits(
    from: &TcpStream,
    to: &TcpStream,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<u8>)> {
    let count = from.try_read(buffer)?;
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if is_temporary(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok((count, rest.to_vec()))
}

async fn write_all(to: &TcpStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if is_temporary(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Where bytes are while they belong to neither side.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    _descriptors: OwnedSemaphorePermit,
}

impl Pipe {
    fn new(budget: &Budget) -> Option<Pipe> {
        let descriptors = budget.take(2)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Refused, it has its usual size.
        let _ = fcntl_setpipe_size(&write, PIPE);
        Some(Pipe {
            read,
            write,
            _descriptors: descriptors,
        })
    }

    /// Moves what there is, once it is there; 0 at the end of input. The pipe is empty before and after.
    async fn move_once(&self, from: &TcpStream, to: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        consume_budget().await;
        // The pipe is empty, so it is the socket that has nothing when this would block.
        let count = from
            .async_io(Interest::READABLE, || {
                Ok(splice(from, None, &self.write, None, PIPE, flags)?)
            })
            .await?;
        let mut left = count;
        while left > 0 {
            let moved = to
                .async_io(Interest::WRITABLE, || {
                    Ok(splice(&self.read, None, to, None, left, flags)?)
                })
                .await?;
            if moved == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            left -= moved;
        }
        Ok(count)
    }
}
