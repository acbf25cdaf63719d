//! The three files that every container gets made: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.
//!
//! They are written into the container's directory and bound over the image's own, so that nothing is ever written
//! through a path of the image (CVE-2025-24965 and its kin).

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::find::Handle;
use super::model::Options;
use super::{Error, Result, SystemContext};
use crate::network::names::{self, Identity};
use crate::network::{self, Mode, Setup};
use crate::store::Store;

/// Writes the files for a start with the addresses in `setup`.
pub(super) fn write(store: &Store, handle: &Handle, setup: &Setup) -> Result<()> {
    let options = &handle.config.options;
    let hostname = hostname(handle);
    let directory = handle.directory();
    write_readable(&directory.join("hostname"), &format!("{hostname}\n"))?;
    if let Mode::Container(other) = &options.network
        && copy_from(&store.container(other), directory, options)?
    {
        return Ok(());
    }
    write_readable(&directory.join("hosts"), &hosts(options, &hostname, setup)?)?;
    write_readable(
        &directory.join("resolv.conf"),
        &resolv_conf(store, options, setup)?,
    )
}

/// Gives a container the names that the one has whose network it joins: with that network come its resolvers. Not if it
/// says itself which it wants.
fn copy_from(other: &Path, directory: &Path, options: &Options) -> Result<bool> {
    let says_itself = options.resolv_file.is_some()
        || !options.dns.is_empty()
        || !options.dns_search.is_empty()
        || !options.add_hosts.is_empty();
    let files = ["hosts", "resolv.conf"];
    if says_itself || !files.iter().all(|file| other.join(file).is_file()) {
        return Ok(false);
    }
    for file in files {
        let path = other.join(file);
        let text = fs::read_to_string(&path).system("read", path)?;
        write_readable(&directory.join(file), &text)?;
    }
    Ok(true)
}

/// Makes the files fit a container that was put on one more network, or taken off one, while it runs. What it has
/// written into them by itself stays.
pub(super) fn rewrite(store: &Store, handle: &Handle, before: &Setup, after: &Setup) -> Result<()> {
    let options = &handle.config.options;
    let directory = handle.directory();
    let hostname = hostname(handle);
    let lines = |setup: &Setup| -> Vec<String> { address_lines(options, &hostname, setup) };
    let path = directory.join("hosts");
    let present = fs::read_to_string(&path).system("read", &path)?;
    let mut text: String = present
        .lines()
        .filter(|line| !lines(before).iter().any(|old| old == line))
        .map(|line| format!("{line}\n"))
        .collect();
    for line in lines(after) {
        let _ = writeln!(text, "{line}");
    }
    write_readable(&path, &text)?;
    let path = directory.join("resolv.conf");
    let present = fs::read_to_string(&path).system("read", &path)?;
    let (old, new) = (
        resolv_conf(store, options, before)?,
        resolv_conf(store, options, after)?,
    );
    if present == old && old != new {
        write_readable(&path, &new)?;
    }
    Ok(())
}

/// The host name inside: what was asked for, the host's own with the host's network, else the short id.
pub(super) fn hostname(handle: &Handle) -> String {
    let options = &handle.config.options;
    match (&options.hostname, &options.network) {
        (Some(hostname), _) => hostname.clone(),
        (None, Mode::Host) => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        (None, _) => handle.config.short_id().to_owned(),
    }
}

fn hosts(options: &Options, hostname: &str, setup: &Setup) -> Result<String> {
    let own = match options.network {
        Mode::Host => fs::read_to_string("/etc/hosts").ok(),
        _ => None,
    };
    let is_own = own.is_some();
    let mut text = own.unwrap_or_else(|| {
        String::from(
            "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
        )
    });
    if !text.ends_with('\n') {
        text.push('\n');
    }
    for entry in &options.add_hosts {
        let (name, address) = entry
            .split_once(':')
            .or_else(|| entry.split_once('='))
            .ok_or_else(|| bad_host(entry))?;
        let address = if address == "host-gateway" {
            setup
                .attachments
                .first()
                .and_then(|attachment| attachment.gateway)
                .map(|gateway| gateway.to_string())
                // With the host's network it is here.
                .or_else(|| (options.network == Mode::Host).then(|| "127.0.0.1".to_owned()))
                .ok_or_else(|| bad_host(entry))?
        } else {
            address
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .map_err(|_| bad_host(entry))?
                .to_string()
        };
        let _ = writeln!(text, "{address}\t{name}");
    }
    if is_own {
        return Ok(text);
    }
    for line in address_lines(options, hostname, setup) {
        let _ = writeln!(text, "{line}");
    }
    Ok(text)
}

/// The lines for the container's own name.
fn address_lines(options: &Options, hostname: &str, setup: &Setup) -> Vec<String> {
    let full = match &options.domainname {
        Some(domain) => format!("{hostname}.{domain} {hostname}"),
        None => hostname.to_owned(),
    };
    let addresses = setup.attachments.iter().flat_map(|attachment| {
        let ipv6 = attachment.ipv6.map(|side| IpAddr::V6(side.address));
        std::iter::once(attachment.address).chain(ipv6)
    });
    addresses
        .map(|address| format!("{address}\t{full}"))
        .collect()
}

fn bad_host(entry: &str) -> Error {
    Error::Invalid(format!(
        "bad --add-host {entry:?}: expected HOST:ADDRESS with an IP address or `host-gateway`"
    ))
}

/// What the resolvers of its networks have to know of a container.
pub(super) fn identity(handle: &Handle) -> Identity {
    let options = &handle.config.options;
    let hostname = hostname(handle);
    let full = options
        .domainname
        .as_ref()
        .map(|domain| format!("{hostname}.{domain}"));
    Identity {
        names: std::iter::once(hostname).chain(full).collect(),
        servers: options
            .dns
            .iter()
            .filter_map(|server| server.parse().ok())
            .collect(),
    }
}

fn resolv_conf(store: &Store, options: &Options, setup: &Setup) -> Result<String> {
    if let Some(file) = &options.resolv_file {
        return fs::read_to_string(file).system("read", file);
    }
    if options.network == Mode::Host && options.dns.is_empty() && options.dns_search.is_empty() {
        return Ok(fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    }
    let host = network::host_resolver(store);
    let pick = |own: &[String], host: &[String]| -> Vec<String> {
        if own.is_empty() {
            host.to_vec()
        } else {
            own.to_vec()
        }
    };
    let resolver = names::server(&setup.attachments).filter(|_| !asks_itself(options));
    let servers = match resolver {
        // It asks the servers of `--dns` by itself.
        Some(resolver) => vec![resolver.to_string()],
        None => pick(&options.dns, &host.servers),
    };
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let search = pick(&options.dns_search, &host.search);
    if !search.is_empty() && search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    let mut extra = pick(&options.dns_options, &host.options);
    if resolver.is_some() {
        // Names of containers have no dots; they shall be asked for as they are first, not below a search domain.
        // `trust-ad` speaks of the host's own server.
        let is_asked_for = |option: &str| options.dns_options.iter().any(|own| own == option);
        extra.retain(|option| {
            is_asked_for(option) || !option.starts_with("ndots:") && option != "trust-ad"
        });
        if !extra.iter().any(|option| option.starts_with("ndots:")) {
            extra.push("ndots:0".to_owned());
        }
    }
    if !extra.is_empty() {
        let _ = writeln!(text, "options {}", extra.join(" "));
    }
    Ok(text)
}

/// Whether one of the container's servers is in the container: nobody else can ask that one.
fn asks_itself(options: &Options) -> bool {
    let addresses = options.dns.iter().filter_map(|server| server.parse().ok());
    addresses
        .into_iter()
        .any(|address: IpAddr| address.is_loopback())
}

/// Readable for every user inside; the directory around it keeps the host's users out.
fn write_readable(path: &Path, text: &str) -> Result<()> {
    // Written in place: a running container has the old file bound, and shall see the new text.
    fs::write(path, text).system("write", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).system("chmod", path)
}
