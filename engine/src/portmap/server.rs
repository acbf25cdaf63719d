//! Keeps the listeners as the source says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::budget::Budget;
use super::register::{Entry, Kind, Listener};
use super::source::{Source, Target, Wanted};
use super::watch::Watch;
use super::{Error, Event, Forward, Listen, Report, Result, tcp, udp};
use crate::container::Handle;
use crate::network::{self, Protocol};
use crate::store::Store;

/// A port that could not be had is tried again after so long, twice that, and so on to the second; a change in the
/// store begins anew.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A listener's socket, and the connection it has accepted before there was a descriptor for it.
const DESCRIPTORS: u32 = 2;

/// Serves every published port until it is dropped.
///
/// # Errors
/// When another process does so already, or the store can't be read.
pub async fn serve(store: &Store, report: Report) -> Result<Infallible> {
    run(store, &Source::Published, Kind::Published, report).await
}

/// Serves one port of a container, through its ends and starts, until it is dropped.
///
/// # Errors
/// When there is no such container, its removal, or a socket that can't be had to begin with.
pub async fn forward(store: &Store, forward: &Forward, report: Report) -> Result<Infallible> {
    let handle = Handle::find(store, &forward.container)?;
    for listen in forward.listens() {
        // Nobody would see it fail: the kernel hands the port's packets to that container.
        if let Some(container) = network::conflicting_holder(store, &listen.into())? {
            return Err(Error::Published {
                listen,
                container: container.chars().take(12).collect(),
            });
        }
    }
    let source = Source::Container(handle.id().to_owned(), forward.clone());
    run(store, &source, Kind::Forward, report)
        .await
        .map_err(|error| match error {
            Error::Removed(_) => Error::Removed(forward.container.clone()),
            other => other,
        })
}

async fn run(store: &Store, source: &Source, kind: Kind, report: Report) -> Result<Infallible> {
    let mut entry = Entry::new(store, kind)?;
    let watch = Watch::new()?;
    let mut server = Server {
        sockets: BTreeMap::new(),
        budget: Budget::raise(),
        report,
    };
    let mut pause = RETRY.0;
    let mut is_first = true;
    loop {
        let is_known = match source.wanted(store, &watch) {
            Ok(wanted) => {
                server.become_what(&wanted).await;
                true
            }
            Err(error @ Error::Removed(_)) => return Err(error),
            Err(error) if is_first => return Err(error),
            Err(error) => {
                (server.report)(Event::Trouble(&error));
                false
            }
        };
        if is_first && kind == Kind::Forward {
            server.refuse_what_is_taken()?;
        }
        entry.tell(server.listeners())?;
        if std::mem::take(&mut is_first) {
            (server.report)(Event::Ready);
        }
        tokio::select! {
            changed = watch.changed() => {
                changed.map_err(|source| Error::Kernel {
                    action: "watch",
                    object: store.run().to_owned(),
                    source,
                })?;
                pause = RETRY.0;
            }
            () = sleep(pause), if !is_known || server.misses_any() => pause = (pause * 2).min(RETRY.1),
        }
    }
}

struct Server {
    sockets: BTreeMap<Listen, Socket>,
    budget: Budget,
    report: Report,
}

/// One socket that shall be there.
struct Socket {
    target: watch::Sender<Target>,
    state: io::Result<Open>,
}

/// One that is.
struct Open {
    task: JoinHandle<()>,
    _descriptors: OwnedSemaphorePermit,
}

impl Server {
    /// Closes, redirects and opens; in this order, because a port that moves to another address is free only then.
    async fn become_what(&mut self, wanted: &Wanted) {
        let gone = self
            .sockets
            .extract_if(.., |listen, _| !wanted.contains_key(listen));
        for (listen, socket) in gone.collect::<Vec<_>>() {
            if let Ok(open) = socket.state {
                open.task.abort();
                // The socket is closed when the task is really gone.
                drop(open.task.await);
                (self.report)(Event::Closed(listen));
            }
        }
        for (listen, target) in wanted {
            match self.sockets.get_mut(listen) {
                Some(socket) if socket.state.is_ok() => {
                    let is_new = socket.target.send_if_modified(|old| {
                        let is_new = old != target;
                        old.clone_from(target);
                        is_new
                    });
                    if is_new {
                        self.tell_of(*listen, target);
                    }
                }
                _ => self.open(*listen, target),
            }
        }
    }

    fn open(&mut self, listen: Listen, target: &Target) {
        let (sender, receiver) = watch::channel(target.clone());
        let state = self.start(listen, receiver);
        let before = self.sockets.get(&listen);
        match &state {
            Ok(_) => self.tell_of(listen, target),
            // Once is enough.
            Err(error) if before.is_none() => {
                (self.report)(Event::Unavailable { listen, error });
            }
            Err(_) => {}
        }
        let socket = Socket {
            target: sender,
            state,
        };
        self.sockets.insert(listen, socket);
    }

    fn start(&self, listen: Listen, target: watch::Receiver<Target>) -> io::Result<Open> {
        let too_many = || io::Error::from_raw_os_error(libc::EMFILE);
        let descriptors = self.budget.take(DESCRIPTORS).ok_or_else(too_many)?;
        let (budget, report) = (self.budget.clone(), self.report.clone());
        let task = match listen.protocol {
            Protocol::Tcp => {
                let listener = tcp::listen(listen.address)?;
                tokio::spawn(tcp::accept(listener, target, budget, report))
            }
            Protocol::Udp => {
                let socket = udp::open(listen.address)?;
                tokio::spawn(udp::serve(socket, target, budget))
            }
            Protocol::Sctp => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "only the kernel's packet filter forwards sctp",
                ));
            }
        };
        Ok(Open {
            task,
            _descriptors: descriptors,
        })
    }

    fn tell_of(&self, listen: Listen, target: &Target) {
        (self.report)(Event::Serving {
            listen,
            target: target.address,
            container: &target.container,
        });
    }

    /// Whether a socket is not there that might be some day.
    fn misses_any(&self) -> bool {
        let mut problems = self
            .sockets
            .values()
            .filter_map(|socket| socket.state.as_ref().err());
        problems.any(|error| !is_beyond_hope(error))
    }

    /// What was typed by hand is an error when it can't be had, rather than something to wait for. A host without
    /// IPv6 has no such sockets, and needs none.
    fn refuse_what_is_taken(&mut self) -> Result<()> {
        let is_absent = |listen: &Listen, socket: &Socket| {
            let of_every_address = listen.address.ip().is_unspecified() && listen.address.is_ipv6();
            of_every_address && socket.state.as_ref().is_err_and(is_beyond_hope)
        };
        if self.sockets.values().any(|socket| socket.state.is_ok()) {
            self.sockets
                .retain(|listen, socket| !is_absent(listen, socket));
        }
        let failed = self
            .sockets
            .extract_if(.., |_, socket| socket.state.is_err())
            .next();
        match failed {
            Some((
                listen,
                Socket {
                    state: Err(source), ..
                },
            )) => Err(Error::Listen { listen, source }),
            _ => Ok(()),
        }
    }

    fn listeners(&self) -> Vec<Listener> {
        let listener = |(listen, socket): (&Listen, &Socket)| {
            let target = socket.target.borrow();
            Listener {
                listen: *listen,
                target: target.address,
                container: target.container.clone(),
                problem: socket.state.as_ref().err().map(ToString::to_string),
            }
        };
        self.sockets.iter().map(listener).collect()
    }
}

fn is_beyond_hope(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(
            error.raw_os_error(),
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)
        )
}
