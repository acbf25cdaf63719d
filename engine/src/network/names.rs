//! Name resolution: one small resolver process for each user-defined network that containers are on.
//!
//! Its clients are the containers of that network, whose `resolv.conf` names the bridge's address. It answers for their
//! names, aliases, short ids and host names out of the store's files ([`table`]), and passes other questions on to the
//! servers that the host asks itself ([`forward`]). A container that is on several networks asks the resolver of the
//! first one, which knows by the address who asks, and answers for all of that container's networks.
//!
//! It listens on a port of its own choice; the packet filter leads port 53 of the bridge's address there. So it is in
//! nobody's way who wants that port (a name server on the host, or one in a container that publishes it), and nobody is
//! in its.
//!
//! Whoever connects the first container starts it, and whoever takes the bridge away ends it. It holds a lock, so there
//! is one only, and has left a [`Record`]; one that was killed is replaced with the next container that is connected.
//! The default network has none, as with docker.

use std::ffi::OsString;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::firewall::PortRule;
use super::{
    Attachment, DEFAULT_NETWORK, Error, KernelContext, Protocol, Result, Setup, connection, member,
};
use crate::container::model::Process;
use crate::store::{self, Durability, Store};

mod forward;
mod message;
mod serve;
mod table;

pub use serve::Resolver;

/// What the resolver answers with when it serves, on its standard output. Anything else is why it does not.
pub const READY: &str = "ready\n";

/// Where containers look for it.
const PORT: u16 = 53;

/// What of a container its resolvers have to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Names beside the container's own, its short id, and the aliases: its host name.
    pub names: Vec<String>,
    /// Servers to ask instead of the host's.
    pub servers: Vec<IpAddr>,
}

/// The resolver of a bridge, as it was when it had begun to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    process: Process,
    address: Ipv4Addr,
    port: u16,
}

impl Record {
    /// Reads it; `None` when there is none, or half of one.
    fn read(directory: &Path) -> Option<Record> {
        store::read_json(&record_path(directory)).ok().flatten()
    }
}

// With a dot, so that none of them is taken for a member.
fn record_path(directory: &Path) -> PathBuf {
    directory.join(".resolver")
}

/// The record that port 53 was last led to: whoever finds another one there has work to do, since the resolver's starter
/// may have died in between.
fn published_path(directory: &Path) -> PathBuf {
    directory.join(".resolver.published")
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.join(".resolver.lock")
}

/// Whether names are resolved on this network.
#[must_use]
pub fn has_resolver(attachment: &Attachment) -> bool {
    attachment.network != DEFAULT_NETWORK
}

/// The server for a container's `resolv.conf`; `None` when it is on the default network only, or on none.
#[must_use]
pub fn server(attachments: &[Attachment]) -> Option<IpAddr> {
    attachments
        .iter()
        .find(|attachment| has_resolver(attachment))?
        .gateway
}

/// Sees to it that the networks in `setup`, which are connected, have their resolvers. `program` is this program, with
/// the arguments that lead it to `store`.
///
/// # Errors
/// When one can't be started.
pub fn ensure(store: &Store, program: &Path, arguments: &[OsString], setup: &Setup) -> Result<()> {
    for attachment in setup.attachments.iter().filter(|one| has_resolver(one)) {
        let directory = member::of_bridge(store, &attachment.bridge);
        let found = Record::read(&directory).filter(|record| record.process.is_alive());
        let published = published_path(&directory);
        if found.is_some() && store::read_json(&published).ok().flatten() == found {
            continue;
        }
        if found.is_none() {
            start(program, arguments, attachment)?;
            wait_for_record(&directory, &attachment.network)?;
        }
        let record = Record::read(&directory);
        connection::publish(store, &redirects(&directory))?;
        store::write_json(&published, &record, Durability::Volatile)?;
    }
    Ok(())
}

/// Sees to it that every network in use has its resolver.
///
/// # Errors
/// When one can't be started.
pub fn ensure_all(store: &Store, program: &Path, arguments: &[OsString]) -> Result<()> {
    let mut setup = Setup::default();
    for bridge in member::bridges(store)? {
        let member = member::read_all(&bridge)?.into_iter().next();
        setup
            .attachments
            .extend(member.map(|(_, member)| member.attachment));
    }
    ensure(store, program, arguments, &setup)
}

/// Starts a resolver and waits until it serves. It leaves this process's session by itself.
fn start(program: &Path, arguments: &[OsString], attachment: &Attachment) -> Result<()> {
    let object = || format!("the resolver of network {}", attachment.network);
    let mut child = Command::new(program)
        .args(arguments)
        .args(["resolver", &attachment.network_id])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .kernel("start", &object())?;
    let mut answer = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout
            .read_to_string(&mut answer)
            .kernel("hear from", &object())?;
    }
    if answer == READY {
        return Ok(());
    }
    // It has ended, or is about to.
    let _ = child.wait();
    Err(Error::Resolver {
        network: attachment.network.clone(),
        reason: match answer.trim() {
            "" => "it ended without a word".to_owned(),
            reason => reason.to_owned(),
        },
    })
}

/// Waits for the record of a resolver that somebody else may just have started.
fn wait_for_record(directory: &Path, network: &str) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let begin = Instant::now();
    while !Record::read(directory).is_some_and(|record| record.process.is_alive()) {
        if begin.elapsed() > PATIENCE {
            return Err(Error::Resolver {
                network: network.to_owned(),
                reason: "it is there, but does not serve".to_owned(),
            });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The rules that lead a bridge's port 53 to its resolver.
pub(super) fn redirects(directory: &Path) -> Vec<PortRule> {
    let Some(record) = Record::read(directory) else {
        return Vec::new();
    };
    [Protocol::Udp, Protocol::Tcp]
        .map(|protocol| PortRule {
            host: Some(record.address.into()),
            protocol,
            host_port: PORT,
            target: record.address.into(),
            target_port: record.port,
        })
        .to_vec()
}

/// A resolver that was told to end.
#[derive(Debug)]
pub(super) struct Ending(OwnedFd);

/// Tells the resolver of a bridge to end; `None` when there is none.
pub(super) fn end(directory: &Path) -> Option<Ending> {
    let process = Record::read(directory)?.process.open()?;
    // Nothing of it has to be saved, and one that is stuck would not hear anything else.
    pidfd_send_signal(&process, Signal::KILL).ok()?;
    Some(Ending(process))
}

impl Ending {
    /// Waits until it has ended, and its address and port are free.
    pub(super) fn wait(self) {
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        // One that the kernel can't end in a second is no reason to keep anybody.
        let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&second));
    }
}
