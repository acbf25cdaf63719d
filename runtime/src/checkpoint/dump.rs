//! Saving a container's processes.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fcntl_getfl};

use super::external;
use super::image::Place;
use super::message::{Features, Kind, Number, Options, Switch, Text};
use super::swrk::{Criu, Start};
use super::{Error, LEAST_VERSION, Wanted, config_file, explain, work_directory};
use crate::cgroup::Hierarchies;
use crate::cli::Parsed;
use crate::container::Container;
use crate::failure::During;
use crate::plan::Plan;
use crate::rootfs::path::Root;
use crate::setup::Error as SetupError;
use crate::spec::Spec;
use crate::sys::process::{inherited_fd, is_inherited};

/// criu's log.
const LOG: &str = "dump.log";
/// The first version that can freeze a v2 cgroup.
const FREEZES_V2: u32 = 31_400;
/// The first version that tells by a message when lazy pages can be fetched.
const SAYS_READY: u32 = 31_500;

/// What `checkpoint` takes beyond what both commands take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DumpWanted {
    /// What both take.
    pub(crate) common: Wanted,
    /// The directory of an earlier pre-dump, relative to the checkpoint's.
    pub(crate) parent: Option<String>,
    /// The container goes on running.
    pub(crate) leave_running: bool,
    /// Connections that are being made are passed over.
    pub(crate) tcp_skip_in_flight: bool,
    /// Files that were removed get a name again.
    pub(crate) link_remap: bool,
    /// Who is told when lazy pages can be fetched: a descriptor's number.
    pub(crate) status_fd: Option<i32>,
    /// Where memory goes instead of the directory.
    pub(crate) page_server: Option<(String, u32)>,
    /// Memory is saved and nothing else, and the container goes on.
    pub(crate) pre_dump: bool,
}

impl DumpWanted {
    /// Takes the options of a command line.
    pub(crate) fn parse(parsed: &Parsed) -> Result<Self, Error> {
        let number = |error: crate::cli::Error| Error::Option(error.to_string());
        Ok(Self {
            common: Wanted::parse(parsed)?,
            parent: parsed
                .value("parent-path")
                .filter(|path| !path.is_empty())
                .map(str::to_owned),
            leave_running: parsed.is_on("leave-running"),
            tcp_skip_in_flight: parsed.is_on("tcp-skip-in-flight"),
            link_remap: parsed.is_on("link-remap"),
            status_fd: parsed
                .number("status-fd")
                .map_err(number)?
                .filter(|fd| *fd != -1),
            page_server: parsed
                .value("page-server")
                .filter(|text| !text.is_empty())
                .map(page_server)
                .transpose()?,
            pre_dump: parsed.is_on("pre-dump"),
        })
    }

    /// Whether the container is still there afterwards.
    pub(crate) fn leaves_container(&self) -> bool {
        self.leave_running || self.pre_dump
    }
}

/// Address and port of a page server.
fn page_server(text: &str) -> Result<(String, u32), Error> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip().to_string(), address.port().into()));
    }
    let (address, port) = text
        .rsplit_once(':')
        .filter(|(address, port)| !address.is_empty() && !port.is_empty())
        .ok_or_else(|| {
            Error::Option("Use --page-server ADDRESS:PORT to specify page server".into())
        })?;
    let port: u16 = port
        .parse()
        .map_err(|_| Error::Option("Invalid port number".into()))?;
    if address.contains(':') && address.parse::<IpAddr>().is_err() {
        // An IPv6 address wants its brackets.
        return Err(Error::Option(
            "Use --page-server ADDRESS:PORT to specify page server".into(),
        ));
    }
    Ok((address.to_owned(), port.into()))
}

/// Saves a container. Its plan is the one it was made from.
pub(crate) fn dump(
    container: &Container,
    spec: &Spec,
    plan: &Plan,
    wanted: &DumpWanted,
) -> Result<(), Error> {
    let image = Place::make(&wanted.common.image)?;
    check_parent(wanted)?;
    let work = work_directory(&wanted.common)?;
    let criu = Criu::start(&Start::BARE, LEAST_VERSION)?;
    check_features(&criu, wanted)?;
    let mut options = wanted.common.options(LOG, &image, work.as_ref());
    describe(&mut options, container, spec, plan, wanted)?;
    let mut status_fd = status_fd(wanted)?;
    if criu.version() < SAYS_READY
        && let Some(raw) = status_fd.take()
    {
        options.number(Number::StatusFd, raw.unsigned_abs());
    }
    if !wanted.pre_dump {
        external_mounts(&mut options, container, plan)?;
        image.write_descriptors(&container.record.external_descriptors)?;
    }
    if let Some(freezer) = container.cgroup.path("freezer")
        && (!container.cgroup.is_pure_v2() || criu.version() >= FREEZES_V2)
    {
        options.text(Text::FreezeCgroup, &freezer.to_string_lossy());
    }
    let kind = if wanted.pre_dump {
        Kind::PreDump
    } else {
        Kind::Dump
    };
    let done = criu.request(kind, &options, |notice| {
        if notice.moment == "status-ready"
            && let Some(raw) = status_fd.take()
        {
            say_ready(raw);
        }
        Ok(())
    });
    if let Err(error) = &done {
        explain(error, work.as_ref().unwrap_or(&image), LOG);
    }
    done
}

/// Checks that the earlier dump is there, and is named as criu needs it: relative to the new one.
fn check_parent(wanted: &DumpWanted) -> Result<(), Error> {
    let Some(parent) = &wanted.parent else {
        return Ok(());
    };
    if Path::new(parent).is_absolute() {
        return Err(Error::Option("--parent-path must be relative".into()));
    }
    let path = wanted.common.image.join(parent);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, &path, flags, Mode::empty())
        .during("stat", &path)
        .map(drop)
        .map_err(|error| Error::Option(format!("invalid --parent-path: {error}")))
}

/// Asks for what the kernel must have for what is wanted.
fn check_features(criu: &Criu, wanted: &DumpWanted) -> Result<(), Error> {
    let features = Features {
        mem_track: wanted.pre_dump,
        lazy_pages: wanted.common.lazy_pages,
    };
    if features == Features::default() {
        return Ok(());
    }
    criu.need_features(features)
}

/// The descriptor for the word that lazy pages can be fetched, checked.
fn status_fd(wanted: &DumpWanted) -> Result<Option<i32>, Error> {
    let Some(raw) = wanted.status_fd.filter(|_| wanted.common.lazy_pages) else {
        return Ok(None);
    };
    let invalid = |why: &str| Error::Option(format!("invalid --status-fd argument {raw}: {why}"));
    if !is_inherited(raw) {
        return Err(invalid("bad file descriptor"));
    }
    let fd = inherited_fd(raw).map_err(|_| invalid("bad file descriptor"))?;
    let flags = fcntl_getfl(fd.as_fd()).map_err(|_| invalid("bad file descriptor"))?;
    if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return Err(invalid("not writable"));
    }
    Ok(Some(raw))
}

/// Gives the word: one zero byte.
fn say_ready(raw: i32) {
    let written = inherited_fd(raw).and_then(|fd| rustix::io::write(fd, &[0]));
    if let Err(errno) = written {
        log::warn!("can't write \\0 to status fd: {errno}");
    }
}

/// What only a dump tells criu.
fn describe(
    options: &mut Options,
    container: &Container,
    spec: &Spec,
    plan: &Plan,
    wanted: &DumpWanted,
) -> Result<(), Error> {
    options
        .text(Text::Root, &plan.root.path.to_string_lossy())
        .number(Number::Pid, container.record.pid.unsigned_abs())
        .switch(Switch::LeaveRunning, wanted.leave_running)
        .switch(Switch::TcpSkipInFlight, wanted.tcp_skip_in_flight)
        .switch(Switch::LinkRemap, wanted.link_remap);
    if let Some(path) = config_file(&spec.annotations) {
        options.text(Text::ConfigFile, path);
    }
    for (kind, path) in plan.namespaces.joined() {
        let Some(key) = external::namespace_key(kind) else {
            continue;
        };
        let inode = rustix::fs::stat(path).during("stat", path)?.st_ino;
        let name = kind.file_name();
        options.text(Text::External, &format!("{name}[{inode}]:{key}"));
    }
    if let Some((address, port)) = &wanted.page_server {
        options.page_server(address, *port);
    }
    if let Some(parent) = &wanted.parent {
        options
            .text(Text::ParentImg, parent)
            .switch(Switch::TrackMem, true);
    }
    Ok(())
}

/// Tells criu which mounts it is to leave out.
fn external_mounts(options: &mut Options, container: &Container, plan: &Plan) -> Result<(), Error> {
    let open = |path: &Path| {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::CString::new(path.as_os_str().as_bytes())
            .map_err(|_| rustix::io::Errno::INVAL);
        name.and_then(|name| Root::open(&name)).during("open", path)
    };
    let rootfs = open(&plan.root.path)?;
    let hierarchies = Hierarchies::detect().map_err(SetupError::from)?;
    for mount in external::mounts(&rootfs, plan, &hierarchies, &container.record.cgroup) {
        options.external_mount(&mount.destination, &mount.destination);
    }
    let inside = open(
        &Path::new("/proc")
            .join(container.record.pid.to_string())
            .join("root"),
    )?;
    for path in external::masked_files(&inside, plan) {
        options.external_mount(&rootfs.canonical(&path), external::NULL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_servers() {
        let good = |text: &str| page_server(text).unwrap();
        assert_eq!(good("127.0.0.1:27"), ("127.0.0.1".into(), 27));
        assert_eq!(good("[::1]:27"), ("::1".into(), 27));
        assert_eq!(good("host:1"), ("host".into(), 1));
        for text in ["host", "host:", ":1", "host:x", "host:70000", "1::2:3x:4"] {
            assert!(page_server(text).is_err(), "{text}");
        }
    }
}
