//! Checkpoint and restore of a container, by criu.
//!
//! [`dump`] saves a container's processes, [`restore`] makes a container of what was saved. Both talk with one criu process
//! ([`swrk`]) in criu's messages ([`message`], [`wire`]). What of the container is not saved but found again at the restore
//! is worked out in [`external`], what may be in a checkpoint's directory in [`image`].
//!
//! Behaviour, names in the checkpoint and options are runc's: a checkpoint that either made can be restored by the other.

use std::path::PathBuf;

use crate::cli::Parsed;
use crate::failure::CallFailed;
use crate::setup::fault::Fault;

pub(crate) mod dump;
mod external;
mod image;
mod message;
pub(crate) mod restore;
mod swrk;
mod wire;

use message::{CgroupMode, Number, Options, Switch, Text};

/// The least version that is talked with at all: the first to tell its version in a message.
const LEAST_VERSION: u32 = 30_000;

/// Why a checkpoint or restore failed. The texts are runc's where runc has one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no criu.
    #[error(
        "CRIU version check failed: exec: \"criu\": executable file not found in $PATH (install criu 4 or newer)"
    )]
    NotInstalled,
    /// criu could not be started.
    #[error("cannot start criu")]
    Start(#[source] Fault),
    /// criu does not tell its version.
    #[error("CRIU version check failed")]
    Version(#[source] Box<Self>),
    /// criu is too old for what is asked.
    #[error("CRIU version {version} must be {least} or higher")]
    TooOld {
        /// What there is, as one number: 4.2.1 is 40201.
        version: u32,
        /// What is needed.
        least: u32,
    },
    /// criu does not say what it can do.
    #[error("CRIU feature check failed")]
    Features(#[source] Box<Self>),
    /// criu, or the kernel, cannot do what is asked.
    #[error("criu is missing features: [{0}]")]
    MissingFeatures(String),
    /// criu failed.
    #[error("criu failed: type {kind} errno {errno}")]
    Failed {
        /// What it was doing.
        kind: message::Kind,
        /// Its error number.
        errno: i32,
    },
    /// criu failed without saying so.
    #[error("criu failed: exit status {0}")]
    Ended(i32),
    /// criu ended in the middle of the conversation.
    #[error("criu ended without an answer")]
    Silent,
    /// criu said what does not fit.
    #[error("unexpected answer from criu")]
    Protocol,
    /// An option's value.
    #[error("{0}")]
    Option(String),
    /// Something in the checkpoint's directory that criu would not have made.
    #[error("{}: a checkpoint has no links and no devices (do not restore what you do not trust)", .0.display())]
    Hostile(PathBuf),
    /// The list of descriptors is none.
    #[error("cannot parse {}", .0.display())]
    Descriptors(PathBuf),
    /// What was restored is not the container of the bundle.
    #[error("the restored process {0}, other than the bundle says")]
    Foreign(String),
    /// A terminal where the bundle has none.
    #[error("the checkpoint has a terminal, and the bundle has none")]
    Terminal,
    /// A namespace to be joined that criu knows nothing of.
    #[error("Do not know how to handle namespace {0}")]
    Namespace(&'static str),
    /// Something around it.
    #[error(transparent)]
    Setup(#[from] crate::setup::Error),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] crate::hook::Error),
    /// State.
    #[error(transparent)]
    State(#[from] crate::state::Error),
    /// A system call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
}

/// What both commands take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where the checkpoint is.
    pub(crate) image: PathBuf,
    /// Where criu's log goes, if not there.
    pub(crate) work: Option<PathBuf>,
    /// Established TCP connections are saved.
    pub(crate) tcp_established: bool,
    /// Unix sockets with the other end outside are saved.
    pub(crate) ext_unix_sk: bool,
    /// A terminal from outside is left to whoever restores.
    pub(crate) shell_job: bool,
    /// File locks are saved.
    pub(crate) file_locks: bool,
    /// Memory is fetched when it is first used.
    pub(crate) lazy_pages: bool,
    /// Memory that is saved twice, here and in an earlier dump, is given up there.
    pub(crate) auto_dedup: bool,
    /// Which cgroup settings are saved.
    cgroups: CgroupMode,
}

impl Wanted {
    /// Takes the options of a command line.
    pub(crate) fn parse(parsed: &Parsed) -> Result<Self, Error> {
        let mode = parsed.value("manage-cgroups-mode").unwrap_or_default();
        // Only the network namespace can be left empty, and always is: nothing here sets one up.
        if let Some(other) = parsed.values("empty-ns").find(|kind| *kind != "network") {
            return Err(Error::Option(format!(
                "namespace {other:?} is not supported"
            )));
        }
        let default = || std::path::absolute("checkpoint").unwrap_or_else(|_| "checkpoint".into());
        Ok(Self {
            image: parsed.path("image-path").unwrap_or_else(default),
            work: parsed.path("work-path"),
            tcp_established: parsed.is_on("tcp-established"),
            ext_unix_sk: parsed.is_on("ext-unix-sk"),
            shell_job: parsed.is_on("shell-job"),
            file_locks: parsed.is_on("file-locks"),
            lazy_pages: parsed.is_on("lazy-pages"),
            auto_dedup: parsed.is_on("auto-dedup"),
            cgroups: CgroupMode::of(mode)
                .ok_or_else(|| Error::Option("invalid manage-cgroups-mode value".into()))?,
        })
    }

    /// What both commands tell criu.
    fn options(&self, log: &str, image: &image::Place, work: Option<&image::Place>) -> Options {
        let mut options = Options::default();
        options
            .number(Number::ImagesDirFd, raw(&image.fd))
            .number(Number::LogLevel, LOG_LEVEL)
            .text(Text::LogFile, log)
            .switch(Switch::ManageCgroups, true)
            .cgroup_mode(self.cgroups)
            .switch(Switch::NotifyScripts, true)
            .switch(Switch::ShellJob, self.shell_job)
            .switch(Switch::ExtUnixSk, self.ext_unix_sk)
            .switch(Switch::TcpEstablished, self.tcp_established)
            .switch(Switch::FileLocks, self.file_locks)
            .switch(Switch::OrphanPtsMaster, true)
            .switch(Switch::AutoDedup, self.auto_dedup)
            .switch(Switch::LazyPages, self.lazy_pages)
            .number(Number::EmptyNs, EMPTY_NAMESPACES);
        if let Some(work) = work {
            options.number(Number::WorkDirFd, raw(&work.fd));
        }
        options
    }
}

/// criu's log has its debug messages as well: it is read when something failed.
const LOG_LEVEL: u32 = 4;

/// `CLONE_NEW*` flags of namespaces whose content is neither saved nor brought back: the network's, which belongs to
/// whoever set it up.
const EMPTY_NAMESPACES: u32 = libc::CLONE_NEWNET.unsigned_abs();

/// A descriptor's number, as criu gets it: it opens `/proc/<our pid>/fd/<number>`, or has inherited it.
fn raw(fd: &std::os::fd::OwnedFd) -> u32 {
    std::os::fd::AsRawFd::as_raw_fd(fd).unsigned_abs()
}

/// The file of criu's own settings for this container: an annotation names one, or none by being empty. criu ignores one
/// that is not there.
fn config_file(annotations: &std::collections::BTreeMap<String, String>) -> Option<&str> {
    match annotations.get("org.criu.config") {
        // The one that runc has, so that what an administrator has set holds for both.
        None => Some("/etc/criu/runc.conf"),
        Some(path) => Some(path.as_str()).filter(|path| !path.is_empty()),
    }
}

/// What the standard streams of a new container are, as `/proc/PID/fd` names them: a restore puts its own in the place of
/// those that are pipes, whose other ends are not part of a checkpoint. Empty when none is a pipe.
pub(crate) fn standard_streams(terminal: bool) -> Vec<String> {
    if terminal {
        return Vec::new();
    }
    let name = |stream| {
        rustix::fs::readlink(format!("/proc/self/fd/{stream}"), Vec::new())
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let names: Vec<String> = (0..3).map(name).collect();
    if names.iter().any(|name| image::is_pipe(name)) {
        names
    } else {
        Vec::new()
    }
}

/// Opens the directory for logs, which is made if it is not there.
fn work_directory(wanted: &Wanted) -> Result<Option<image::Place>, CallFailed> {
    wanted.work.as_deref().map(image::Place::make).transpose()
}

/// Tells what criu's log has to say about a failure.
fn explain(error: &Error, directory: &image::Place, log: &str) {
    if !matches!(
        error,
        Error::Failed { .. } | Error::Ended(_) | Error::Silent
    ) {
        return;
    }
    let lines = image::errors_of(directory, log);
    if lines.is_empty() {
        return;
    }
    log::warn!("--- Quoting {:?}", directory.path.join(log));
    for line in lines {
        log::warn!("{line}");
    }
    log::warn!("---");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn parse(line: &str) -> Result<Wanted, Error> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let command = crate::cli::command(&words[0]).unwrap();
        Wanted::parse(&crate::cli::parse_command(command, &words[1..]).unwrap())
    }

    #[test]
    fn what_was_typed() {
        let wanted = parse(
            "checkpoint c1 --image-path /i --work-path /w --shell-job --manage-cgroups-mode=ignore --empty-ns network",
        )
        .unwrap();
        assert_eq!(wanted.image, PathBuf::from("/i"));
        assert_eq!(wanted.work, Some(PathBuf::from("/w")));
        assert!(wanted.shell_job && !wanted.file_locks);
        assert_eq!(wanted.cgroups, CgroupMode::Ignore);
        let wanted = parse("restore c1").unwrap();
        assert!(wanted.image.is_absolute() && wanted.image.ends_with("checkpoint"));
        assert_eq!(wanted.cgroups, CgroupMode::Default);
    }

    #[test]
    fn wrong_values_are_named() {
        for (line, text) in [
            (
                "checkpoint c1 --manage-cgroups-mode hard",
                "invalid manage-cgroups-mode value",
            ),
            (
                "restore c1 --empty-ns mount",
                "namespace \"mount\" is not supported",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn criu_settings_by_annotation() {
        let with = |path: &str| BTreeMap::from([("org.criu.config".to_owned(), path.to_owned())]);
        assert_eq!(config_file(&BTreeMap::new()), Some("/etc/criu/runc.conf"));
        assert_eq!(config_file(&with("/etc/own.conf")), Some("/etc/own.conf"));
        assert_eq!(config_file(&with("")), None);
    }
}
