//! A connection to systemd: by the system's or the user's bus, or by systemd's own socket where there is no bus.
//!
//! One thread, one conversation: a call is sent, and messages are read until its answer is there. Signals that come in
//! between are kept. See the D-Bus specification ("Authentication Protocol") and org.freedesktop.systemd1(5).

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::wire::{self, Call, Message, Value, kind};
use super::{Error, Result};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// How long systemd may take for an answer or a job; as long as runc waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a bus whose queue is full is tried again, with twice the pause each time from 50 ms on.
const ATTEMPTS: u32 = 7;

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    /// Where it goes to, for messages.
    address: String,
    /// Whether there is a bus in between, so that messages need an address.
    shared: bool,
    serial: u32,
    /// Jobs that are over: object path and result.
    finished: Vec<(String, String)>,
}

/// One way to systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    address: Address,
    /// Whether a bus is there, or systemd itself.
    shared: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Path(PathBuf),
    Abstract(Vec<u8>),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

impl Address {
    fn connect(&self) -> std::io::Result<UnixStream> {
        let mut pause = Duration::from_millis(50);
        for _ in 1..ATTEMPTS {
            match self.connect_once() {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                result => return result,
            }
        }
        self.connect_once()
    }

    fn connect_once(&self) -> std::io::Result<UnixStream> {
        match self {
            Self::Path(path) => UnixStream::connect(path),
            Self::Abstract(name) => {
                UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)
            }
        }
    }
}

/// The unix sockets in a list of addresses as environment variables have it: `unix:path=/run/x;unix:abstract=y`.
fn parse_addresses(list: &str) -> Vec<Address> {
    let one = |address: &str| {
        let pairs = address.strip_prefix("unix:")?;
        pairs
            .split(',')
            .find_map(|pair| match pair.split_once('=')? {
                ("path", value) => {
                    let bytes = unescape(value)?;
                    Some(Address::Path(String::from_utf8(bytes).ok()?.into()))
                }
                ("abstract", value) => Some(Address::Abstract(unescape(value)?)),
                _ => None,
            })
    };
    list.split(';').filter_map(one).collect()
}

/// `%2f` and the like.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

/// Where to look for systemd, in order: the system's, or a user's own.
fn ways(user: bool, variable: impl Fn(&str) -> Option<String>) -> Vec<Way> {
    let path = |path: PathBuf, shared| Way {
        address: Address::Path(path),
        shared,
    };
    let named = |name| {
        let addresses = parse_addresses(&variable(name).unwrap_or_default());
        addresses
            .into_iter()
            .map(|address| Way {
                address,
                shared: true,
            })
            .collect::<Vec<_>>()
    };
    if !user {
        let mut ways = named("DBUS_SYSTEM_BUS_ADDRESS");
        ways.push(path("/run/dbus/system_bus_socket".into(), true));
        ways.push(path("/run/systemd/private".into(), false));
        return ways;
    }
    let mut ways = named("DBUS_SESSION_BUS_ADDRESS");
    let own = format!("/run/user/{}", rustix::process::getuid().as_raw());
    let runtime = variable("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    for directory in runtime.into_iter().chain([own]) {
        let directory = Path::new(&directory);
        ways.push(path(directory.join("bus"), true));
        ways.push(path(directory.join("systemd/private"), false));
    }
    ways
}

impl Bus {
    /// Connects to the system's systemd, or to the user's own.
    pub(super) fn connect(user: bool) -> Result<Self> {
        let mut failures = Vec::new();
        for way in ways(user, |name| std::env::var(name).ok()) {
            match Self::by(&way) {
                Ok(bus) => return Ok(bus),
                Err(error) => failures.push(format!(
                    "{}: {}",
                    way.address,
                    crate::failure::chain(&error)
                )),
            }
        }
        Err(Error::Connect { user, failures })
    }

    fn by(way: &Way) -> Result<Self> {
        let address = way.address.to_string();
        let lost = |source| Error::Io {
            address: address.clone(),
            source,
        };
        let stream = way.address.connect().map_err(lost)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(lost)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(lost)?;
        let mut bus = Self {
            stream,
            address: address.clone(),
            shared: way.shared,
            serial: 0,
            finished: Vec::new(),
        };
        bus.authenticate().map_err(lost)?;
        if bus.shared {
            bus.call_bus("Hello", &[])?;
            let rule = format!(
                "type='signal',sender='{SYSTEMD}',path='{OBJECT}',interface='{MANAGER}',member='JobRemoved'"
            );
            bus.call_bus("AddMatch", &[Value::text(rule)])?;
        }
        Ok(bus)
    }

    /// Says nothing about who we are: the other side asks the kernel, which also is right in a user namespace, where our
    /// own idea of our user id is not its.
    fn authenticate(&mut self) -> std::io::Result<()> {
        self.stream
            .write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        // "DATA" asks for the identity, which is the empty one sent already; "OK" comes with the server's id.
        for expected in ["DATA", "OK"] {
            let line = self.line()?;
            if line.split_whitespace().next() != Some(expected) {
                let refused = format!("authentication refused: {line:?}");
                return Err(std::io::Error::new(
                    std::io::ErrorKind::PermissionDenied,
                    refused,
                ));
            }
        }
        Ok(())
    }

    fn line(&mut self) -> std::io::Result<String> {
        /// The answers have some 40 characters.
        const LONGEST: usize = 256;
        let mut line = Vec::new();
        // Byte by byte, because binary messages follow.
        while !line.ends_with(b"\r\n") && line.len() < LONGEST {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn call_bus(&mut self, member: &str, arguments: &[Value]) -> Result<Message> {
        self.send(&Call {
            destination: Some("org.freedesktop.DBus"),
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
            arguments,
        })
    }

    /// Calls a method of systemd's manager object.
    pub(super) fn manager(&mut self, member: &str, arguments: &[Value]) -> Result<Message> {
        self.send(&Call {
            destination: self.shared.then_some(SYSTEMD),
            path: OBJECT,
            interface: MANAGER,
            member,
            arguments,
        })
    }

    /// Reads a property of the manager object that is a text.
    pub(super) fn manager_property(&mut self, name: &str) -> Result<String> {
        let message = self.send(&Call {
            destination: self.shared.then_some(SYSTEMD),
            path: OBJECT,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            arguments: &[Value::text(MANAGER), Value::text(name)],
        })?;
        match message.body.into_iter().next() {
            Some(Value::Variant(value)) => match *value {
                Value::Text(text) => Ok(text),
                _ => Err(self.malformed()),
            },
            _ => Err(self.malformed()),
        }
    }

    /// Calls a method that starts a job, and waits for the job's end; gives its result, `done` when all is well.
    pub(super) fn job(&mut self, member: &str, arguments: &[Value]) -> Result<String> {
        let Some(Value::Path(job)) = self.manager(member, arguments)?.body.pop_front() else {
            return Err(self.malformed());
        };
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.finished.iter().position(|(path, _)| *path == job) {
                return Ok(self.finished.swap_remove(at).1);
            }
            let message = self.receive(end)?;
            self.note(message);
        }
    }

    /// Sends a call and waits for its answer.
    fn send(&mut self, call: &Call<'_>) -> Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        self.stream
            .write_all(&call.encode(serial))
            .map_err(|source| self.lost(source))?;
        let end = Instant::now() + PATIENCE;
        loop {
            let mut message = self.receive(end)?;
            match message.kind {
                kind::RETURN if message.reply_to == serial => return Ok(message),
                kind::ERROR if message.reply_to == serial => {
                    let text = match message.body.pop_front() {
                        Some(Value::Text(text)) => text,
                        _ => message.error.clone(),
                    };
                    return Err(Error::Refused {
                        method: call.member.to_owned(),
                        name: message.error,
                        text,
                    });
                }
                _ => self.note(message),
            }
        }
    }

    /// Remembers the end of a job: `(u id, o job, s unit, s result)`.
    fn note(&mut self, message: Message) {
        if message.kind != kind::SIGNAL || message.member != "JobRemoved" {
            return;
        }
        let mut values = message.body.into_iter().skip(1);
        if let (Some(Value::Path(job)), Some(_), Some(Value::Text(result))) =
            (values.next(), values.next(), values.next())
        {
            self.finished.push((job, result));
        }
    }

    fn receive(&mut self, end: Instant) -> Result<Message> {
        // Each read may take that long by itself; other messages could go on coming in between.
        if Instant::now() > end {
            return Err(self.lost(std::io::ErrorKind::TimedOut.into()));
        }
        let mut start = [0; wire::FIXED];
        self.stream
            .read_exact(&mut start)
            .map_err(|source| self.lost(source))?;
        let total = wire::total_length(&start).map_err(|_| self.malformed())?;
        let mut message = start.to_vec();
        message.resize(total, 0);
        self.stream
            .read_exact(&mut message[wire::FIXED..])
            .map_err(|source| self.lost(source))?;
        wire::decode(&message).map_err(|_| self.malformed())
    }

    fn lost(&self, source: std::io::Error) -> Error {
        Error::Io {
            address: self.address.clone(),
            source,
        }
    }

    fn malformed(&self) -> Error {
        Error::Malformed {
            address: self.address.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let path = |path: &str| Address::Path(path.into());
        for (list, expected) in [
            ("unix:path=/run/user/5/bus", vec![path("/run/user/5/bus")]),
            (
                "tcp:host=x;unix:guid=1,path=/a%20b;unix:abstract=/tmp/c",
                vec![path("/a b"), Address::Abstract(b"/tmp/c".to_vec())],
            ),
            ("unix:path=/a%2", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse_addresses(list), expected, "{list}");
        }
    }

    #[test]
    fn ways_to_systemd() {
        let texts = |user, set: &[(&str, &str)]| -> Vec<String> {
            let variable = |name: &str| {
                let found = set.iter().find(|(key, _)| *key == name)?;
                Some(found.1.to_owned())
            };
            ways(user, variable)
                .iter()
                .map(|way| way.address.to_string())
                .collect()
        };
        assert_eq!(
            texts(false, &[]),
            ["/run/dbus/system_bus_socket", "/run/systemd/private"]
        );
        let set = [
            ("DBUS_SESSION_BUS_ADDRESS", "unix:abstract=x"),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        assert_eq!(
            texts(true, &set)[..3],
            ["@x", "/r/bus", "/r/systemd/private"]
        );
    }

    /// A systemd that has one job, whose end it tells before it answers the call that began it.
    #[test]
    fn a_job_may_be_over_before_its_answer() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut bus = Bus {
            stream: ours,
            address: "test".into(),
            shared: false,
            serial: 0,
            finished: Vec::new(),
        };
        // Laid out by hand in wire's own tests; here the encoder of calls serves, with kind and fields changed.
        let signal = {
            let arguments = [
                Value::U32(1),
                Value::Path("/j/1".into()),
                Value::text("a.scope"),
                Value::text("done"),
            ];
            let call = Call {
                destination: None,
                path: "/p",
                interface: "i.j",
                member: "JobRemoved",
                arguments: &arguments,
            };
            let mut bytes = call.encode(9);
            bytes[1] = kind::SIGNAL;
            bytes
        };
        let answer = {
            // Fields: the serial it answers, and the signature.
            let mut bytes = vec![
                b'l',
                kind::RETURN,
                0,
                1,
                9,
                0,
                0,
                0,
                7,
                0,
                0,
                0,
                15,
                0,
                0,
                0,
            ];
            bytes.extend([5, 1, b'u', 0, 1, 0, 0, 0, 8, 1, b'g', 0, 1, b'o', 0, 0]);
            bytes.extend([4, 0, 0, 0, b'/', b'j', b'/', b'1', 0]);
            bytes
        };
        theirs.write_all(&signal).unwrap();
        theirs.write_all(&answer).unwrap();
        assert_eq!(bus.job("StartTransientUnit", &[]).unwrap(), "done");
        drop(theirs);
        assert!(matches!(bus.manager("Reload", &[]), Err(Error::Io { .. })));
    }
}
