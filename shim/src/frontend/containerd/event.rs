//! Events for containerd: what happens to a task is told to its ttrpc socket, in order.
//!
//! An event waits until containerd has taken it. While nobody listens (containerd is being restarted) they are kept, up
//! to a number; the oldest go first then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use prost::Message;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::message::{Any, Envelope, ForwardRequest, KeyValue, Request, Timestamp};
use super::ttrpc::{Closed, Connection, Incoming};
use crate::diag;

/// Most events kept while containerd does not take any.
const KEPT: usize = 2048;

/// Pause before containerd's socket is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often one event is offered to a containerd that refuses it.
const ATTEMPTS: u8 = 5;

/// The sender of events.
#[derive(Debug)]
pub(crate) struct Publisher {
    address: Option<String>,
    namespace: String,
    waiting: VecDeque<(Envelope, u8)>,
    connection: Option<Connection>,
    /// Stream of the call that is under way.
    stream: Option<u32>,
    last_stream: u32,
    retry_at: Option<Instant>,
}

impl Publisher {
    /// Sends to the unix socket at `address` (`TTRPC_ADDRESS`), nowhere without one.
    pub(crate) fn new(address: Option<String>, namespace: String) -> Self {
        let address = address
            .map(|text| text.trim_start_matches("unix://").to_owned())
            .filter(|path| !path.is_empty());
        Self {
            address,
            namespace,
            waiting: VecDeque::new(),
            connection: None,
            stream: None,
            last_stream: 0,
            retry_at: None,
        }
    }

    /// Queues an event. `topic` and `name` are containerd's: `/tasks/exit`, `containerd.events.TaskExit`.
    pub(crate) fn publish(&mut self, topic: &str, name: &str, event: &impl Message) {
        if self.address.is_none() {
            return;
        }
        if self.waiting.len() == KEPT {
            // Not the first: it may be under way.
            self.waiting.remove(1);
            diag::warning!("containerd takes no events: one was dropped");
        }
        let envelope = Envelope {
            timestamp: Some(Timestamp::now()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any::pack(name, event)),
        };
        self.waiting.push_back((envelope, 0));
    }

    /// Whether everything was taken, or nobody will ever take it.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When to call [`Publisher::advance`] again at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The connection, to be watched.
    pub(crate) fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// Does what can be done now: connects, and sends the next event when the last was taken. `true`: there is a new
    /// connection.
    pub(crate) fn advance(&mut self, now: Instant) -> bool {
        if self.waiting.is_empty() || self.stream.is_some() {
            return false;
        }
        if self.retry_at.is_some_and(|at| at > now) {
            return false;
        }
        self.retry_at = None;
        let mut fresh = false;
        if self.connection.is_none() {
            match self.connect() {
                Ok(connection) => self.connection = Some(connection),
                Err(errno) => {
                    diag::debug!("connect to containerd's ttrpc socket: {errno}");
                    self.retry_at = Some(now + RETRY);
                    return false;
                }
            }
            fresh = true;
        }
        self.send_first();
        fresh
    }

    fn connect(&self) -> rustix::io::Result<Connection> {
        let path = self.address.as_deref().unwrap_or_default();
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&fd, &address)?;
        Ok(Connection::new(fd))
    }

    fn send_first(&mut self) {
        let (Some((envelope, attempts)), Some(connection)) =
            (self.waiting.front_mut(), &mut self.connection)
        else {
            return;
        };
        *attempts += 1;
        // Clients use odd numbers.
        let stream = self.last_stream * 2 + 1;
        self.last_stream += 1;
        let payload = ForwardRequest {
            envelope: Some(envelope.clone()),
        };
        let request = Request {
            service: "containerd.services.events.ttrpc.v1.Events".into(),
            method: "Forward".into(),
            payload: payload.encode_to_vec(),
            timeout_nano: 0,
            metadata: vec![KeyValue {
                key: "containerd-namespace-ttrpc".into(),
                value: self.namespace.clone(),
            }],
        };
        connection.request(stream, &request);
        self.stream = Some(stream);
        if connection.flush().is_err() {
            self.disconnected(Instant::now());
        }
    }

    /// Takes what containerd has to say.
    pub(crate) fn receive(&mut self, buffer: &mut [u8], now: Instant) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let mut read = || -> Result<Vec<Incoming>, Closed> {
            connection.receive(buffer)?;
            let mut all = Vec::new();
            while let Some(incoming) = connection.next()? {
                all.push(incoming);
            }
            Ok(all)
        };
        let Ok(all) = read() else {
            return self.disconnected(now);
        };
        for incoming in all {
            let Incoming::Response(stream, response) = incoming else {
                continue;
            };
            if self.stream == Some(stream) {
                self.stream = None;
                self.answered(response.status.filter(|status| status.code != 0), now);
            }
        }
    }

    fn answered(&mut self, refusal: Option<super::message::Status>, now: Instant) {
        match refusal {
            None => {
                self.waiting.pop_front();
                if self.waiting.is_empty() {
                    self.waiting.shrink_to(0);
                }
            }
            Some(status) => {
                diag::warning!("containerd refuses an event: {}", status.message);
                if self
                    .waiting
                    .front()
                    .is_some_and(|(_, attempts)| *attempts >= ATTEMPTS)
                {
                    self.waiting.pop_front();
                }
                self.retry_at = Some(now + RETRY);
            }
        }
    }

    /// Forgets the connection; what was under way is sent again over the next.
    pub(crate) fn disconnected(&mut self, now: Instant) {
        self.connection = None;
        self.stream = None;
        if !self.waiting.is_empty() {
            self.retry_at = Some(now + RETRY);
        }
    }
}
