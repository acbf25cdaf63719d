//! The part of the monitor that moves data: output to log and clients, input to
//! the container, sizes to the terminal.

use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::token::Token;
use super::{Monitor, Phase};
use crate::attach::client::Received;
use crate::console;
use crate::control::Request;
use crate::error::Error;
use crate::log::Stream;
use crate::plan::StdioKind;
use crate::stdio::{self, Chunk, Input, Output};

impl Monitor {
    /// Reads one chunk of a stream and passes it on.
    pub(super) fn pump(&mut self, stream: Stream) {
        let output = match stream {
            Stream::Stdout => &mut self.stdio.stdout,
            Stream::Stderr => &mut self.stdio.stderr,
        };
        let Some(source) = output else { return };
        match source.read(&mut self.buffer) {
            Chunk::Nothing => {}
            Chunk::End if source.may_come_back() => source.pause(Instant::now()),
            Chunk::End => *output = None,
            Chunk::Data(count) => self.deliver(stream, count),
        }
    }

    /// Passes on the first `count` bytes of the buffer.
    pub(super) fn deliver(&mut self, stream: Stream, count: usize) {
        if stream == Stream::Stderr && !matches!(self.phase, Phase::Running(_) | Phase::Ended(_)) {
            return self.hold(count);
        }
        let data = &self.buffer[..count];
        self.logs.write(stream, data);
        if let Some(attach) = &mut self.attach {
            attach.broadcast(stream, data, Instant::now());
        }
    }

    /// Whether clients' input is wanted now. Without a stdin it is, to be thrown
    /// away; before the terminal is there it has to wait.
    pub(super) fn takes_input(&self) -> bool {
        match &self.stdio.stdin {
            Some(stdin) => stdin.has_room(),
            None => self.console.is_none(),
        }
    }

    /// Handles what happened to a client.
    pub(super) fn serve_client(&mut self, slot: usize, flags: EventFlags) {
        let room = self.takes_input();
        let Some(attach) = &mut self.attach else {
            return;
        };
        let Some(client) = attach.client(slot) else {
            return;
        };
        if flags.contains(EventFlags::OUT) {
            client.flush(Instant::now());
        }
        let closed = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        if closed {
            client.hang_up();
        }
        let mut large = Vec::new();
        let mut received = Received::Nothing;
        if room && (closed || flags.contains(EventFlags::IN)) {
            received = client.receive(&mut self.buffer);
            if let Received::TooLarge(size) = received {
                large.resize(size, 0);
                received = client.receive(&mut large);
            }
        }
        if client.is_gone() {
            attach.dismiss(slot);
        }
        match received {
            Received::Input(count) => {
                let buffer = if large.is_empty() {
                    &self.buffer[..]
                } else {
                    &large
                };
                if let Some(stdin) = &mut self.stdio.stdin
                    && !stdin.write(&buffer[..count])
                {
                    self.stdio.stdin = None;
                }
            }
            Received::End => self.close_stdin(),
            Received::Nothing | Received::TooLarge(_) => {}
        }
    }

    /// A client has no more input. On a terminal that means nothing.
    fn close_stdin(&mut self) {
        let pipes = matches!(self.plan.stdio, StdioKind::Pipes { .. });
        if pipes && !self.plan.leave_stdin_open {
            self.feed_stdin(Input::close);
        }
    }

    /// Does something with stdin that may be the end of it.
    pub(super) fn feed_stdin(&mut self, action: impl FnOnce(&mut Input) -> bool) {
        if let Some(stdin) = &mut self.stdio.stdin
            && !action(stdin)
        {
            self.stdio.stdin = None;
        }
    }

    /// Takes the terminal from the runtime.
    pub(super) fn receive_terminal(&mut self) -> Result<(), Error> {
        let Some(socket) = &self.console else {
            return Ok(());
        };
        let Some(terminal) = socket.receive()? else {
            return Ok(());
        };
        console::configure(&terminal);
        if let Some((rows, columns)) = self.size {
            console::resize(&terminal, rows, columns);
        }
        let terminal = stdio::nonblocking(terminal)?;
        let copy = rustix::io::fcntl_dupfd_cloexec(&terminal, 0)
            .map_err(Error::call("duplicate the terminal"))?;
        self.stdio.stdin = Some(Input::new(copy));
        self.stdio.stdout = Some(Output::new(terminal, Stream::Stdout, true));
        // One terminal is all that a container has.
        self.console = None;
        Ok(())
    }

    pub(super) fn read_control(&mut self, token: Token) {
        let fifo = match token {
            Token::Control => &mut self.control,
            _ => &mut self.window_size,
        };
        let Some(fifo) = fifo else { return };
        let (logs, size) = (&mut self.logs, &mut self.size);
        let terminal = self
            .stdio
            .stdout
            .as_ref()
            .filter(|output| output.may_come_back());
        fifo.read(|request| match request {
            Request::ReopenLogs => logs.reopen(),
            Request::Resize { rows, columns } => {
                *size = Some((rows, columns));
                if let Some(terminal) = terminal {
                    console::resize(terminal.fd(), rows, columns);
                }
            }
        });
    }
}
