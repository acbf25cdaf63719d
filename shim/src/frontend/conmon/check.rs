//! From conmon's options to the [`Plan`]: what they mean, and which of them do
//! not go together.
//!
//! Differences from conmon, all of them additions: `--no-daemon`, the log
//! driver `json-file`, `--log-label-file`, and `--log-max-files`, which alone switches rotation on
//! (conmon wants `--log-rotate` with it).

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use rustix::fs::{Access, access};

use super::flags::Flags;
use crate::diag::Level;
use crate::error::Error;
use crate::log::{Format, Labels, Limits, Target};
use crate::plan::{Api, Detach, ExitCommand, Kind, Plan, StdioKind};
use crate::socket::LONGEST_PATH;

/// Where attach links are made unless told otherwise, as conmon.
const DEFAULT_SOCKET_DIR: &str = "/var/run/crio";

impl Flags {
    /// Checks the options and makes the plan. Relative paths are under `directory`.
    pub(crate) fn into_plan(mut self, directory: &Path) -> Result<Plan, Error> {
        let cid = self.cid.clone().ok_or_else(|| missing("cid"))?;
        check_name("--cid", &cid)?;
        let api = match self.api_version.unwrap_or(0) {
            0 => Api::Legacy,
            _ => Api::Current,
        };
        let kind = self.kind(api, directory)?;
        let exec = matches!(kind, Kind::Exec { .. });
        if self.cuuid.is_none() && (!exec || api == Api::Current) {
            return Err(missing("cuuid"));
        }
        let bundle = match &self.bundle {
            Some(bundle) => Some(resolve(directory, bundle)?),
            None if exec => None,
            None => Some(directory.to_owned()),
        };
        if let Some(path) = &self.log_label_file {
            self.log_labels
                .extend(labels_in(&resolve(directory, path)?)?);
        }
        let (logs, passthrough) = self.logs(directory)?;
        let stdio = match (passthrough, self.terminal) {
            (true, false) => StdioKind::Passthrough,
            // Of both the terminal, as conmon: what is said on it goes nowhere.
            (_, true) => StdioKind::Terminal,
            (false, false) => StdioKind::Pipes { stdin: self.stdin },
        };
        let socket_link = match (&bundle, self.full_attach || passthrough) {
            (Some(_), false) => Some(self.socket_link(directory)?),
            _ => None,
        };
        let container_pidfile = match &self.container_pidfile {
            Some(path) => resolve(directory, path)?,
            None => directory.join(format!("pidfile-{cid}")),
        };
        let in_directory = |path: &Option<PathBuf>| {
            path.as_deref()
                .map(|path| resolve(directory, path))
                .transpose()
        };
        Ok(Plan {
            api,
            kind,
            runtime: self.runtime_words(directory, exec)?,
            runtime_options: self.runtime_options(exec),
            container_pidfile,
            monitor_pidfile: in_directory(&self.conmon_pidfile)?,
            exit_dir: in_directory(&self.exit_dir)?,
            persist_dir: in_directory(&self.persist_dir)?,
            notify_socket: in_directory(&self.sdnotify_socket)?,
            bundle,
            socket_link,
            stdio,
            leave_stdin_open: self.leave_stdin_open,
            replace_listen_pid: self.replace_listen_pid,
            logs,
            limits: self.limits()?,
            labels: Labels {
                id: cid.clone(),
                name: self.name,
                tag: self.log_tag,
                extra: self.log_labels,
            },
            sync_exit: !self.no_sync,
            sync_logs: !self.no_sync && !self.no_sync_log,
            exit_command: self.exit_command.map(|path| ExitCommand {
                path,
                arguments: self.exit_command_args,
                delay: Duration::from_secs(self.exit_delay.unwrap_or(0)),
            }),
            timeout: self
                .timeout
                .filter(|&seconds| seconds > 0)
                .map(Duration::from_secs),
            detach: match (self.no_daemon, self.sync) {
                (true, _) => Detach::NoDaemon,
                (false, true) => Detach::Sync,
                (false, false) => Detach::Daemon,
            },
            log_level: self.log_level.unwrap_or(Level::Warn),
            syslog: self.syslog,
            cid,
        })
    }

    fn kind(&self, api: Api, directory: &Path) -> Result<Kind, Error> {
        if self.exec_attach && !self.exec {
            return Err(usage("--exec-attach can only be used with --exec"));
        }
        if self.exec_attach && api == Api::Legacy {
            return Err(usage("--exec-attach needs --api-version 1"));
        }
        match (&self.restore, self.exec) {
            (Some(_), true) => Err(usage("--exec and --restore exclude each other")),
            (Some(image), false) => Ok(Kind::Restore {
                image: resolve(directory, image)?,
            }),
            (None, false) => Ok(Kind::Create),
            (None, true) => {
                let process = self.exec_process_spec.as_deref();
                let process = process.ok_or_else(|| missing("exec-process-spec"))?;
                Ok(Kind::Exec {
                    process: resolve(directory, process)?,
                    attach: self.exec_attach,
                })
            }
        }
    }

    fn runtime_words(&self, directory: &Path, exec: bool) -> Result<Vec<OsString>, Error> {
        let runtime = self.runtime.as_deref().ok_or_else(|| missing("runtime"))?;
        let runtime = resolve(directory, runtime)?;
        access(&runtime, Access::EXEC_OK).map_err(Error::path("use runtime", &runtime))?;
        let mut words = vec![runtime.into_os_string()];
        if self.systemd_cgroup && !exec {
            words.push("--systemd-cgroup".into());
        }
        words.extend(self.runtime_args.iter().cloned());
        Ok(words)
    }

    fn runtime_options(&self, exec: bool) -> Vec<OsString> {
        let mut words = Vec::new();
        if self.no_pivot && !exec {
            words.push("--no-pivot".into());
        }
        if self.no_new_keyring && !exec {
            words.push("--no-new-keyring".into());
        }
        words.extend(self.runtime_opts.iter().cloned());
        words
    }

    fn logs(&self, directory: &Path) -> Result<(Vec<Target>, bool), Error> {
        if self.log_paths.is_empty() {
            return Err(missing("log-path"));
        }
        let mut targets = Vec::new();
        let mut passthrough = false;
        for value in &self.log_paths {
            match parse_log_path(value.as_bytes())? {
                LogPath::Nothing => {}
                LogPath::Passthrough => passthrough = true,
                LogPath::Journald => targets.push(Target::Journald),
                LogPath::File(format, path) => targets.push(Target::File {
                    format,
                    path: resolve(directory, &path)?,
                }),
            }
        }
        let journald = targets.contains(&Target::Journald);
        if !journald && self.log_tag.is_some() {
            return Err(usage("--log-tag needs the log driver journald"));
        }
        let json = |target: &Target| {
            matches!(
                target,
                Target::File {
                    format: Format::Json,
                    ..
                }
            )
        };
        if !journald && !targets.iter().any(json) && !self.log_labels.is_empty() {
            return Err(usage(
                "--log-label and --log-label-file need the log driver journald or json-file",
            ));
        }
        Ok((targets, passthrough))
    }

    fn limits(&self) -> Result<Limits, Error> {
        let backups = match (self.log_rotate, self.log_max_files) {
            (true, Some(0)) => {
                return Err(usage("--log-rotate needs --log-max-files of at least 1"));
            }
            (_, Some(files)) => files,
            (true, None) => 1,
            (false, None) => 0,
        };
        // conmon's callers say -1 for "no limit".
        let positive = |limit: Option<i64>| {
            limit
                .and_then(|bytes| u64::try_from(bytes).ok())
                .filter(|&bytes| bytes > 0)
        };
        Ok(Limits {
            file_size: positive(self.log_size_max),
            backups,
            total: positive(self.log_global_size_max),
        })
    }

    fn socket_link(&self, directory: &Path) -> Result<PathBuf, Error> {
        let cuuid = self.cuuid.as_deref().ok_or_else(|| missing("cuuid"))?;
        check_name("--cuuid", cuuid)?;
        let base = self
            .socket_dir
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_SOCKET_DIR));
        let link = resolve(directory, base)?.join(cuuid);
        // A link exactly as long as a socket's address may be leaves no room
        // for the socket. The callers know that conmon drops the last letter.
        if link.as_os_str().len() == LONGEST_PATH {
            let shorter = &link.as_os_str().as_bytes()[..LONGEST_PATH - 1];
            return Ok(PathBuf::from(std::ffi::OsStr::from_bytes(shorter)));
        }
        Ok(link)
    }
}

/// What one `--log-path` means.
#[derive(Debug, PartialEq, Eq)]
enum LogPath {
    Nothing,
    Passthrough,
    Journald,
    File(Format, PathBuf),
}

fn parse_log_path(value: &[u8]) -> Result<LogPath, Error> {
    let as_path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    let refuse = |text: &str| {
        Err(usage(&format!(
            "--log-path '{}': {text}",
            String::from_utf8_lossy(value)
        )))
    };
    let colon = value.iter().position(|&byte| byte == b':');
    let (driver, path) = match colon {
        // ":PATH" is a file whatever its name; "none" alone is a driver.
        Some(0) => (&b"k8s-file"[..], &value[1..]),
        Some(at) => (&value[..at], &value[at + 1..]),
        None => (value, &b""[..]),
    };
    match driver {
        b"" => refuse("empty"),
        b"none" | b"null" | b"off" => Ok(LogPath::Nothing),
        b"passthrough" => Ok(LogPath::Passthrough),
        b"journald" => Ok(LogPath::Journald),
        b"k8s-file" | b"json-file" if path.is_empty() => refuse("the path is missing"),
        b"k8s-file" => Ok(LogPath::File(Format::K8s, as_path(path))),
        b"json-file" => Ok(LogPath::File(Format::Json, as_path(path))),
        _ if colon.is_none() => Ok(LogPath::File(Format::K8s, as_path(value))),
        _ => refuse("no such log driver"),
    }
}

fn resolve(directory: &Path, path: &Path) -> Result<PathBuf, Error> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    absolute(directory.join(path)).map_err(Error::path("resolve path", path))
}

/// Ids become names of files in directories that others watch.
fn check_name(option: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(usage(&format!("{option} '{name}': not a valid id")));
    }
    Ok(())
}

/// The labels of `--log-label-file`, each ended by a NUL: a value may have several lines.
fn labels_in(path: &Path) -> Result<Vec<String>, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::path("read labels from", path))?;
    let labels = text.split('\0').filter(|label| !label.is_empty());
    Ok(labels.map(str::to_owned).collect())
}

fn missing(option: &str) -> Error {
    usage(&format!("--{option} is missing"))
}

fn usage(text: &str) -> Error {
    Error::Usage(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::flags::{Parsed, parse};
    use super::*;

    fn plan_of(line: &str) -> Result<Plan, Error> {
        match parse(line.split_whitespace().map(OsString::from))? {
            Parsed::Run(flags) => flags.into_plan(Path::new("/some/dir")),
            Parsed::Print(text) => Err(Error::Usage(text)),
        }
    }

    const BASE: &str = "--api-version 1 -c ID -u UID -r /bin/sh -b /b -l k8s-file:/l --full-attach";

    fn words(command: &[OsString]) -> String {
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn the_engine_s_command_line() {
        let plan = plan_of(
            "--api-version 1 --cid ID --cuuid ID --name NAME --runtime /bin/sh --runtime-arg=--root \
             --runtime-arg=/run/r --bundle /b --container-pidfile /p --conmon-pidfile /c --exit-dir /e \
             --persist-dir /s --full-attach --socket-dir-path /d --log-path json-file:/l \
             --log-size-max 100 --log-max-files 3 --terminal --stdin --exit-command /q \
             --exit-command-arg container --exit-command-arg cleanup --exit-command-arg ID --no-daemon",
        )
        .unwrap();
        assert_eq!(plan.api, Api::Current);
        assert_eq!(plan.stdio, StdioKind::Terminal);
        assert_eq!(plan.detach, Detach::NoDaemon);
        assert_eq!(plan.socket_link, None);
        assert_eq!(
            plan.logs,
            [Target::File {
                format: Format::Json,
                path: "/l".into()
            }]
        );
        assert_eq!(plan.limits.file_size, Some(100));
        assert_eq!(plan.limits.backups, 3);
        assert_eq!(plan.exit_command.as_ref().unwrap().arguments.len(), 3);
        assert_eq!(
            words(&plan.runtime_command(Some(Path::new("/b/console")))),
            "/bin/sh --root /run/r create --bundle /b --pid-file /p --console-socket /b/console ID"
        );
    }

    #[test]
    fn runtime_commands() {
        let plan = plan_of(&format!("{BASE} -s --no-pivot --runtime-opt -x -p /p")).unwrap();
        assert_eq!(
            words(&plan.runtime_command(None)),
            "/bin/sh --systemd-cgroup create --bundle /b --pid-file /p --no-pivot -x ID"
        );
        let plan = plan_of(&format!("{BASE} -s --restore /i -p /p")).unwrap();
        assert_eq!(
            words(&plan.runtime_command(None)),
            "/bin/sh --systemd-cgroup restore --bundle /b --pid-file /p --detach \
             --image-path /i --work-path /b ID"
        );
        let line = "-c ID -e --exec-process-spec spec.json -r /bin/sh -l none -s -p pid";
        let plan = plan_of(line).unwrap();
        assert_eq!(
            words(&plan.runtime_command(None)),
            "/bin/sh exec --pid-file /some/dir/pid --process /some/dir/spec.json --detach ID"
        );
        assert_eq!(plan.api, Api::Legacy);
        assert_eq!(plan.socket_dir(), None);
    }

    #[test]
    fn api_versions() {
        for (option, api) in [
            ("--api-version 1", Api::Current),
            ("--api-version=1", Api::Current),
            ("--api-version", Api::Current),
            ("--api-version 0", Api::Legacy),
            ("", Api::Legacy),
        ] {
            let line = format!("{option} -c ID -u U -r /bin/sh -l none --full-attach");
            assert_eq!(plan_of(&line).unwrap().api, api, "{option}");
        }
    }

    #[test]
    fn links_and_defaults() {
        let plan = plan_of("-c ID -u UID -r /bin/sh -l none").unwrap();
        assert_eq!(plan.socket_link, Some("/var/run/crio/UID".into()));
        assert_eq!(plan.bundle, Some("/some/dir".into()));
        assert_eq!(plan.container_pidfile, Path::new("/some/dir/pidfile-ID"));
        assert_eq!(plan.detach, Detach::Daemon);
        let long = "x".repeat(LONGEST_PATH - 4);
        let plan = plan_of(&format!(
            "-c ID -u {long} -r /bin/sh -l none --socket-dir-path /so"
        ))
        .unwrap();
        assert_eq!(
            plan.socket_link.unwrap().as_os_str().len(),
            LONGEST_PATH - 1
        );
    }

    #[test]
    fn log_paths() {
        let file = |format, path: &str| LogPath::File(format, path.into());
        for (value, expected) in [
            ("/a/b", file(Format::K8s, "/a/b")),
            ("k8s-file:/a:b", file(Format::K8s, "/a:b")),
            ("json-file:/a", file(Format::Json, "/a")),
            (":none", file(Format::K8s, "none")),
            ("none", LogPath::Nothing),
            ("off", LogPath::Nothing),
            ("null:", LogPath::Nothing),
            ("passthrough", LogPath::Passthrough),
            ("journald:", LogPath::Journald),
        ] {
            assert_eq!(
                parse_log_path(value.as_bytes()).unwrap(),
                expected,
                "{value}"
            );
        }
        for value in ["", "k8s-file", "json-file:", "syslog:/x", ":"] {
            assert!(parse_log_path(value.as_bytes()).is_err(), "{value}");
        }
    }

    #[test]
    fn rotation() {
        let limits = |line: &str| plan_of(&format!("{BASE} {line}")).map(|plan| plan.limits);
        assert_eq!(limits("").unwrap(), Limits::default());
        assert_eq!(limits("--log-size-max -1").unwrap().file_size, None);
        let plain = limits("--log-size-max 10").unwrap();
        assert_eq!((plain.file_size, plain.backups), (Some(10), 0));
        assert_eq!(limits("--log-rotate").unwrap().backups, 1);
        assert_eq!(limits("--log-rotate --log-max-files 4").unwrap().backups, 4);
        assert!(limits("--log-rotate --log-max-files 0").is_err());
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        for (line, text) in [
            ("-u U -r /bin/sh -l none", "--cid is missing"),
            ("-c ID -r /bin/sh -l none", "--cuuid is missing"),
            ("-c ID -u U -l none", "--runtime is missing"),
            ("-c ID -u U -r /bin/sh", "--log-path is missing"),
            (
                "-c a/b -u U -r /bin/sh -l none",
                "--cid 'a/b': not a valid id",
            ),
            (
                "-c I -u U -r /bin/sh -l none --exec",
                "--exec-process-spec is missing",
            ),
            (
                "-c I -u U -r /bin/sh -l none --exec-attach",
                "--exec-attach can only be used with --exec",
            ),
            (
                "-c I -u U -r /bin/sh -l none --log-tag x",
                "--log-tag needs the log driver journald",
            ),
            (
                "-c I -u U -r /bin/sh -l none --nonsense",
                "invalid option '--nonsense'",
            ),
            (
                "-c I -u U -r /bin/sh -l none word",
                "unexpected argument \"word\"",
            ),
            (
                "-c I -u U -r /bin/sh -l none -T x",
                "cannot parse argument \"x\": invalid digit found in string",
            ),
        ] {
            assert_eq!(plan_of(line).unwrap_err().to_string(), text, "{line}");
        }
        let error = plan_of("-c I -u U -r /no/such -l none").unwrap_err();
        assert!(
            error
                .chain()
                .starts_with("use runtime /no/such: No such file"),
            "{}",
            error.chain()
        );
    }
}
