//! The resolver process of one network: sockets, and who may use them how much.
//!
//! One thread. A question about a name of ours is answered on the spot; one that has to go further is a task, of which
//! there may be so many in all and so many for one client, so that no client can use up what the others need.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::super::{KernelContext, Network, PacketFilter, Result, Subnet, Subnet6, member};
use super::forward::{self, HostServers, Transport};
use super::message::{self, Kind, Query, Refusal};
use super::table::{Asker, Finding, Table};
use super::{Record, lock_path, record_path};
use crate::container::model::Process;
use crate::store::{self, Durability, Lock, Store};

/// Questions under way to other servers, in all and for one client.
const FORWARDS: usize = 256;
const FORWARDS_OF_ONE: usize = 48;
/// Open connections, in all and for one client.
const CONNECTIONS: usize = 128;
const CONNECTIONS_OF_ONE: usize = 16;
/// How long a connection may be silent, or take to bring one message or to take one.
const SILENCE: Duration = Duration::from_secs(5);
/// How often it is made sure that there still is a network.
const LOOK: Duration = Duration::from_secs(3);
/// The pause after something that should not fail has failed.
const BREATH: Duration = Duration::from_millis(100);
/// More than any query needs.
const DATAGRAM: usize = 4096;

/// What the process is about to do for its network; it has the lock that makes it the only one.
#[derive(Debug)]
pub struct Resolver {
    store: Store,
    network: Network,
    directory: PathBuf,
    lock: Lock,
}

impl Resolver {
    /// Becomes the resolver of the network; `None` when there is one already.
    ///
    /// # Errors
    /// When the network is not there, or has no container on it.
    pub fn new(store: &Store, network: &str) -> Result<Option<Resolver>> {
        let network = super::super::find(store, network)?;
        network.bridge()?;
        let directory = member::of_bridge(store, &network.interface);
        let Some(lock) = Lock::try_exclusive(&lock_path(&directory))? else {
            return Ok(None);
        };
        Ok(Some(Resolver {
            store: store.clone(),
            network,
            directory,
            lock,
        }))
    }

    /// Serves for as long as the network is in use. `ready` is called when questions are answered.
    ///
    /// # Errors
    /// When it can't listen on the bridge's address.
    pub fn run(self, ready: impl FnOnce()) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .kernel("start", "the resolver")?;
        LocalSet::new().block_on(&runtime, self.serve(ready))
    }

    async fn serve(self, ready: impl FnOnce()) -> Result<()> {
        let gateway = self.network.bridge()?.gateway;
        let object = format!("port of {gateway} for the resolver");
        let wanted = match super::super::packet_filter(&self.store)? {
            // Nobody there to lead clients elsewhere.
            PacketFilter::None => Ports::Only(super::PORT),
            _ => Ports::Any(Record::read(&self.directory).map(|record| record.port)),
        };
        let (udp, tcp) = bind(gateway, wanted).await.kernel("listen on a", &object)?;
        let port = udp.local_addr().kernel("listen on a", &object)?.port();
        if let Some(process) = Process::remember(std::process::id().cast_signed()) {
            let record = Record {
                process,
                address: gateway,
                port,
            };
            let path = record_path(&self.directory);
            store::write_json(&path, &record, Durability::Volatile)?;
        }
        ready();
        let server = Rc::new(Server {
            table: RefCell::new(Table::new(&self.store)),
            host: RefCell::default(),
            bridge: self.directory.clone(),
            subnet: self.network.bridge()?.subnet,
            subnet6: self.network.ipam6.map(|ipam| ipam.subnet),
            internal: self.network.internal,
            forwards: Rc::new(Quota::new(FORWARDS, FORWARDS_OF_ONE)),
            connections: Rc::new(Quota::new(CONNECTIONS, CONNECTIONS_OF_ONE)),
        });
        tokio::select! {
            () = server.clone().listen_udp(Rc::new(udp)) => {}
            () = server.listen_tcp(tcp) => {}
            () = self.until_gone() => {}
        }
        Ok(())
    }

    /// Waits until what says that we are the network's resolver has been taken away. Whoever takes a network down ends
    /// us at once; this is for a store that was removed by hand.
    async fn until_gone(&self) {
        while self.lock.is_at(&lock_path(&self.directory)) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Where to listen.
enum Ports {
    Only(u16),
    /// Anywhere; best where the resolver before us did, whose rules may still be there.
    Any(Option<u16>),
}

/// Binds one port number for both protocols.
async fn bind(address: Ipv4Addr, wanted: Ports) -> io::Result<(UdpSocket, TcpListener)> {
    const ATTEMPTS: usize = 32;
    let before = match wanted {
        Ports::Only(port) => return bind_both(address, port).await,
        Ports::Any(before) => before,
    };
    let mut outcome = Err(io::ErrorKind::AddrInUse.into());
    for port in before.into_iter().chain(std::iter::repeat_n(0, ATTEMPTS)) {
        outcome = bind_both(address, port).await;
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

async fn bind_both(address: Ipv4Addr, port: u16) -> io::Result<(UdpSocket, TcpListener)> {
    const BACKLOG: u32 = 64;
    let udp = UdpSocket::bind((address, port)).await?;
    let tcp = TcpSocket::new_v4()?;
    tcp.set_reuseaddr(true)?;
    tcp.bind(udp.local_addr()?)?;
    Ok((udp, tcp.listen(BACKLOG)?))
}

struct Server {
    table: RefCell<Table>,
    host: RefCell<HostServers>,
    bridge: PathBuf,
    subnet: Subnet,
    subnet6: Option<Subnet6>,
    internal: bool,
    forwards: Rc<Quota>,
    connections: Rc<Quota>,
}

/// What becomes of a query.
enum Answer {
    None,
    Here(Vec<u8>),
    Elsewhere(Query, Vec<SocketAddr>),
}

impl Server {
    async fn listen_udp(self: Rc<Server>, socket: Rc<UdpSocket>) {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                // Should it fail again and again, at least not in a hurry.
                tokio::time::sleep(BREATH).await;
                continue;
            };
            let query = &buffer[..length];
            match self.answer(query, peer.ip(), message::UDP_LIMIT) {
                Answer::None => {}
                // One whom the kernel has no room for is lost, as a datagram may be.
                Answer::Here(reply) => drop(socket.try_send_to(&reply, peer)),
                Answer::Elsewhere(question, servers) => {
                    let Some(ticket) = Ticket::take(&self.forwards, peer.ip()) else {
                        continue;
                    };
                    let (query, socket) = (query.to_vec(), socket.clone());
                    spawn_local(async move {
                        let reply = pass_on(&query, question, &servers, Transport::Udp).await;
                        drop(socket.try_send_to(&reply, peer));
                        drop(ticket);
                    });
                }
            }
        }
    }

    async fn listen_tcp(self: Rc<Server>, listener: TcpListener) {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                // Out of descriptors, most likely: better when some connection has ended.
                tokio::time::sleep(BREATH).await;
                continue;
            };
            if let Some(ticket) = Ticket::take(&self.connections, peer.ip()) {
                let server = self.clone();
                spawn_local(async move {
                    // However it ends, there is nobody to tell.
                    let _ = server.converse(stream, peer.ip()).await;
                    drop(ticket);
                });
            }
        }
    }

    /// Answers the questions of one connection, one after the other.
    async fn converse(&self, mut stream: TcpStream, peer: IpAddr) -> io::Result<()> {
        loop {
            let query = timeout(SILENCE, forward::read_message(&mut stream)).await??;
            let reply = match self.answer(&query, peer, usize::from(u16::MAX)) {
                Answer::None => return Ok(()),
                Answer::Here(reply) => reply,
                Answer::Elsewhere(question, servers) => {
                    let Some(_ticket) = Ticket::take(&self.forwards, peer) else {
                        return Ok(());
                    };
                    pass_on(&query, question, &servers, Transport::Tcp).await
                }
            };
            timeout(SILENCE, forward::write_message(&mut stream, &reply)).await??;
        }
    }

    fn answer(&self, query: &[u8], peer: IpAddr, limit: usize) -> Answer {
        // Whoever is not on this network, and reaches us through the host, has no business with its names.
        let is_inside = match peer {
            IpAddr::V4(peer) => self.subnet.contains(peer),
            IpAddr::V6(peer) => self.subnet6.is_some_and(|subnet| subnet.contains(peer)),
        };
        if !is_inside {
            return Answer::None;
        }
        let query = match message::parse(query) {
            Ok(query) => query,
            Err(Refusal::Silence) => return Answer::None,
            Err(Refusal::Reply(reply)) => return Answer::Here(reply),
        };
        if !query.is_internet() {
            return Answer::Here(query.refused());
        }
        let mut table = self.table.borrow_mut();
        table.refresh();
        let asker = table.asker(&self.bridge, peer, self.internal);
        if let Some(reply) = own_answer(&table, &asker, &query, limit) {
            return Answer::Here(reply);
        }
        if !asker.may_ask_outside {
            return Answer::Here(query.no_such_name());
        }
        let servers = if asker.servers.is_empty() {
            self.host.borrow_mut().now().to_vec()
        } else {
            let with_port = |server: &IpAddr| SocketAddr::new(*server, forward::PORT);
            asker.servers.iter().map(with_port).collect()
        };
        Answer::Elsewhere(query, servers)
    }
}

/// The answer from what we know ourselves; `None` when somebody else is to be asked.
fn own_answer(table: &Table, asker: &Asker, query: &Query, limit: usize) -> Option<Vec<u8>> {
    let name = query.name.as_deref()?;
    if let (Kind::Pointer | Kind::Any, Some(address)) = (query.kind(), message::reversed(name)) {
        return match table.find_address(asker, address) {
            Ok(name) => Some(query.pointer(&name, limit)),
            Err(Finding::Unknown) => None,
            Err(_) => Some(query.no_such_name()),
        };
    }
    match table.find(asker, name) {
        Finding::Found(addresses) => Some(query.addresses(&addresses, limit)),
        Finding::Hidden => Some(query.no_such_name()),
        Finding::Unknown => None,
    }
}

async fn pass_on(
    bytes: &[u8],
    query: Query,
    servers: &[SocketAddr],
    transport: Transport,
) -> Vec<u8> {
    let reply = forward::ask(bytes, query.question_length, servers, transport).await;
    reply.unwrap_or_else(|| query.server_failure())
}

/// How much of something there is, in all and for one client.
#[derive(Debug)]
struct Quota {
    taken: RefCell<HashMap<IpAddr, usize>>,
    all: usize,
    one: usize,
}

impl Quota {
    fn new(all: usize, one: usize) -> Quota {
        Quota {
            taken: RefCell::default(),
            all,
            one,
        }
    }
}

/// A client's part of a quota, given back when dropped.
#[derive(Debug)]
struct Ticket {
    quota: Rc<Quota>,
    client: IpAddr,
}

impl Ticket {
    fn take(quota: &Rc<Quota>, client: IpAddr) -> Option<Ticket> {
        let mut taken = quota.taken.borrow_mut();
        let own = taken.get(&client).copied().unwrap_or(0);
        if own >= quota.one || taken.values().sum::<usize>() >= quota.all {
            return None;
        }
        taken.insert(client, own + 1);
        drop(taken);
        Some(Ticket {
            quota: quota.clone(),
            client,
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.borrow_mut();
        match taken.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.client)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_takes_it_all() {
        let quota = Rc::new(Quota::new(3, 2));
        let [one, other] = ["10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
        let first = Ticket::take(&quota, one).unwrap();
        let second = Ticket::take(&quota, one).unwrap();
        assert!(Ticket::take(&quota, one).is_none());
        let third = Ticket::take(&quota, other).unwrap();
        assert!(Ticket::take(&quota, other).is_none());
        drop(first);
        drop(Ticket::take(&quota, other).unwrap());
        drop((second, third));
        assert!(quota.taken.borrow().is_empty());
    }
}
