//! Moves network devices between the runtime's network namespace and the container's.
//!
//! Name, flags and permanent global addresses go with the device; hardware address and MTU are its own anyway. When the
//! create fails later on, the devices come back ([`Moved::undo`]); when the container ends, the kernel does with them what it
//! does with the devices of a namespace that is no more. Governing text: runtime-spec config-linux.md, "Linux Network
//! Devices".

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::failure::{CallFailed, During};
use crate::namespace::Kind;
use crate::netlink::{Address, Link, Socket};
use crate::plan::network_device::NetworkDevice;
use crate::sys::process::setns;

/// Why a device could not be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No such device.
    #[error("link not found for interface {name} on runtime namespace")]
    NotFound { name: String, source: CallFailed },
    /// Something about a device.
    #[error("unable to move network device {name} into the container")]
    Device { name: String, source: CallFailed },
    /// Something about the namespaces.
    #[error(transparent)]
    Call(#[from] CallFailed),
}

/// Both namespaces, and the devices that are on their way from one to the other, or there.
#[derive(Debug)]
pub(crate) struct Moved {
    outside: Side,
    inside: Side,
    devices: Vec<(NetworkDevice, Before)>,
}

/// A namespace, and a socket in it.
#[derive(Debug)]
struct Side {
    namespace: OwnedFd,
    socket: Socket,
}

/// What a device was before it was touched.
#[derive(Debug)]
struct Before {
    link: Link,
    addresses: Vec<Address>,
    /// Whether it has left: until then what has its name inside is another one.
    moved: bool,
}

impl Moved {
    /// Takes up both namespaces. For a moment this process, which has one thread, is in the container's.
    pub(crate) fn begin(inside: OwnedFd) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let outside = openat(CWD, c"/proc/self/ns/net", flags, Mode::empty())
            .during("open", "/proc/self/ns/net")?;
        let outside = Side {
            socket: Socket::open().during("socket", "netlink")?,
            namespace: outside,
        };
        setns(&inside, Kind::Network.flag()).during("setns", "network")?;
        let socket = Socket::open();
        setns(&outside.namespace, Kind::Network.flag()).during("setns", "network")?;
        Ok(Self {
            outside,
            inside: Side {
                socket: socket.during("socket", "netlink")?,
                namespace: inside,
            },
            devices: Vec::new(),
        })
    }

    /// Moves a device in. What has been done to it is noted, also when something fails.
    pub(crate) fn move_in(&mut self, device: &NetworkDevice) -> Result<(), Error> {
        let name = device.outside.as_str();
        let found = self.outside.socket.link(name);
        let link = found
            .during("netlink", name)
            .map_err(|source| Error::NotFound {
                name: name.to_owned(),
                source,
            })?;
        log::debug!(
            "moving network device {name} into the container as {}",
            device.inside
        );
        self.move_found(device, link)
            .during("netlink", name)
            .map_err(|source| Error::Device {
                name: name.to_owned(),
                source,
            })
    }

    fn move_found(&mut self, device: &NetworkDevice, link: Link) -> Result<(), Errno> {
        // Before anything is touched, because the kernel moves a device first and then finds that its new name is taken.
        match self.inside.socket.link(&device.inside) {
            Ok(_) => return Err(Errno::EXIST),
            Err(Errno::NODEV) => {}
            Err(errno) => return Err(errno),
        }
        // Before it goes down, because IPv6 addresses do not outlive that.
        let addresses = self.outside.socket.addresses(link)?;
        let addresses: Vec<_> = addresses.into_iter().filter(Address::travels).collect();
        let before = Before {
            link,
            addresses,
            moved: false,
        };
        self.devices.push((device.clone(), before));
        let Some((_, before)) = self.devices.last_mut() else {
            return Ok(());
        };
        carry(&self.outside, &self.inside, link, &device.inside)?;
        before.moved = true;
        self.inside.settle(&device.inside, &before.addresses, true)
    }

    /// Takes the devices back, the last one first. Failures are logged: the one that led here is what the user is told.
    pub(crate) fn undo(self) {
        for (device, before) in self.devices.iter().rev() {
            if let Err(errno) = self.move_back(device, before) {
                let why = crate::failure::text(errno);
                log::warn!("cannot take network device {} back: {why}", device.outside);
            }
        }
    }

    fn move_back(&self, device: &NetworkDevice, before: &Before) -> Result<(), Errno> {
        if before.moved {
            let link = self.inside.socket.link(&device.inside)?;
            carry(&self.inside, &self.outside, link, &device.outside)?;
        }
        // Also one that never left: it may have been taken down.
        self.outside
            .settle(&device.outside, &before.addresses, before.link.up)
    }
}

impl Side {
    /// Gives a device its addresses, and takes it up or down.
    fn settle(&self, name: &str, addresses: &[Address], up: bool) -> Result<(), Errno> {
        let link = self.socket.link(name)?;
        let mut given = Ok(());
        for address in addresses {
            given = given.and(match self.socket.add_address(link, address) {
                // It has kept it, or somebody there has what the device brings along.
                Err(Errno::EXIST) => Ok(()),
                other => other,
            });
        }
        // Whatever became of the addresses.
        let set_up = self.socket.set_up(link, up);
        given.and(set_up)
    }
}

/// Moves a device from one namespace to another.
fn carry(from: &Side, to: &Side, link: Link, name: &str) -> Result<(), Errno> {
    // A device that is up cannot be renamed; and nobody is to use it half way.
    from.socket.set_up(link, false)?;
    from.socket.move_link(link, name, to.namespace.as_fd())
}
