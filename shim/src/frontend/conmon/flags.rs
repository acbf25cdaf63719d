//! conmon's options, as typed. What they mean is in [`super::check`].

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg::{Long, Short, Value};
use lexopt::ValueExt as _;

use crate::diag::Level;
use crate::error::Error;

const HELP: &str = "\
Usage: qshim --cid ID --cuuid ID --runtime PATH --log-path DRIVER:PATH [OPTION...]

Starts a container, or a process in one, through an OCI runtime, and stays with
it: owns its standard streams, writes its log, serves attach clients, records
its exit code.

Container:
      --api-version [VERSION]   Version of the sync pipe's messages (0 or 1)
  -c, --cid ID                  Container id
  -u, --cuuid ID                Unique id, names the attach link
  -n, --name NAME               Container name
  -b, --bundle DIR              Bundle; sockets and fifos are made in it
  -r, --runtime PATH            OCI runtime
      --runtime-arg ARG         Global argument of the runtime (repeatable)
      --runtime-opt ARG         Option of the runtime's command (repeatable)
  -s, --systemd-cgroup          Pass --systemd-cgroup to the runtime
      --no-pivot                Pass --no-pivot to the runtime
      --no-new-keyring          Pass --no-new-keyring to the runtime
      --restore DIR             Restore from the checkpoint in DIR
      --replace-listen-pid      Set LISTEN_PID to the runtime's pid
  -T, --timeout SECONDS         Kill the container after this time

Exec session:
  -e, --exec                    Run a process in a running container
      --exec-process-spec FILE  Its JSON specification
      --exec-attach             Wait until the caller has attached

Streams:
  -t, --terminal                Use a pseudo-terminal
  -i, --stdin                   Give the container a stdin
      --leave-stdin-open        Keep stdin open when a client leaves
      --socket-dir-path DIR     Where a short link to the bundle is made
      --full-attach             Make no such link
      --sdnotify-socket PATH    Relay the container's sd_notify messages

Logs:
  -l, --log-path DRIVER:PATH    k8s-file, json-file, journald, passthrough,
                                none, or a path alone (repeatable)
      --log-size-max BYTES      Rotate a log file before it grows beyond this
      --log-rotate              Keep rotated files
      --log-max-files N         How many of them (default 1)
      --log-global-size-max BYTES
                                Log no more than this in all
      --log-tag TAG             Tag of journal entries
      --log-label LABEL=VALUE   Field of journal entries, attribute of json-file's
                                (repeatable)
      --log-label-file FILE     The same from a file, each ended by a NUL: command
                                lines can be read by everybody
      --no-sync-log             Do not sync the log at the end

End:
  -p, --container-pidfile FILE  Where the runtime writes the container's pid
  -P, --conmon-pidfile FILE     Where the monitor's own pid is written
      --exit-dir DIR            Write the exit code to DIR/ID
  -0, --persist-dir DIR         Write the exit code to DIR/exit
      --no-sync                 The exit code's directories do not outlive a
                                reboot: sync nothing there, nor the log
      --exit-command PATH       Run this after the end
      --exit-command-arg ARG    Its argument (repeatable)
      --exit-delay SECONDS      Wait before running it

Monitor:
      --sync                    Stay in the foreground
      --no-daemon               Stay in the foreground, in a session of its own,
                                leave the cgroup, close leaked descriptors
      --log-level LEVEL         error, warn, info, debug
      --syslog                  Send messages to syslog
  -h, --help
      --version";

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// A session.
    Run(Box<Flags>),
    /// A text on stdout.
    Print(String),
}

/// The options as typed.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    pub(super) api_version: Option<u32>,
    pub(super) bundle: Option<PathBuf>,
    pub(super) cid: Option<String>,
    pub(super) cuuid: Option<String>,
    pub(super) name: Option<String>,
    pub(super) runtime: Option<PathBuf>,
    pub(super) runtime_args: Vec<OsString>,
    pub(super) runtime_opts: Vec<OsString>,
    pub(super) systemd_cgroup: bool,
    pub(super) no_pivot: bool,
    pub(super) no_new_keyring: bool,
    pub(super) restore: Option<PathBuf>,
    pub(super) replace_listen_pid: bool,
    pub(super) timeout: Option<u64>,
    pub(super) exec: bool,
    pub(super) exec_process_spec: Option<PathBuf>,
    pub(super) exec_attach: bool,
    pub(super) terminal: bool,
    pub(super) stdin: bool,
    pub(super) leave_stdin_open: bool,
    pub(super) socket_dir: Option<PathBuf>,
    pub(super) full_attach: bool,
    pub(super) sdnotify_socket: Option<PathBuf>,
    pub(super) log_paths: Vec<OsString>,
    pub(super) log_size_max: Option<i64>,
    pub(super) log_rotate: bool,
    pub(super) log_max_files: Option<u32>,
    pub(super) log_global_size_max: Option<i64>,
    pub(super) log_tag: Option<String>,
    pub(super) log_labels: Vec<String>,
    pub(super) log_label_file: Option<PathBuf>,
    pub(super) no_sync: bool,
    pub(super) no_sync_log: bool,
    pub(super) container_pidfile: Option<PathBuf>,
    pub(super) conmon_pidfile: Option<PathBuf>,
    pub(super) exit_dir: Option<PathBuf>,
    pub(super) persist_dir: Option<PathBuf>,
    pub(super) exit_command: Option<PathBuf>,
    pub(super) exit_command_args: Vec<OsString>,
    pub(super) exit_delay: Option<u64>,
    pub(super) sync: bool,
    pub(super) no_daemon: bool,
    pub(super) log_level: Option<Level>,
    pub(super) syslog: bool,
}

/// Parses the arguments after the program's name.
pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Parsed, Error> {
    let mut parser = lexopt::Parser::from_args(words);
    parse_options(&mut parser).map_err(|error| Error::Usage(error.to_string()))
}

fn parse_options(parser: &mut lexopt::Parser) -> Result<Parsed, lexopt::Error> {
    let mut flags = Flags::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Parsed::Print(HELP.to_owned())),
            Long("version") => return Ok(Parsed::Print(version())),
            Long("api-version") => flags.api_version = Some(api_version(parser)?),
            Short('b') | Long("bundle") => flags.bundle = Some(path(parser)?),
            Short('c') | Long("cid") => flags.cid = Some(parser.value()?.string()?),
            Short('u') | Long("cuuid") => flags.cuuid = Some(parser.value()?.string()?),
            Short('n') | Long("name") => flags.name = Some(parser.value()?.string()?),
            Short('r') | Long("runtime") => flags.runtime = Some(path(parser)?),
            Long("runtime-arg") => flags.runtime_args.push(parser.value()?),
            Long("runtime-opt" | "restore-arg") => flags.runtime_opts.push(parser.value()?),
            Short('s') | Long("systemd-cgroup") => flags.systemd_cgroup = true,
            Long("no-pivot") => flags.no_pivot = true,
            Long("no-new-keyring") => flags.no_new_keyring = true,
            Long("restore") => flags.restore = Some(path(parser)?),
            Long("replace-listen-pid") => flags.replace_listen_pid = true,
            Short('T') | Long("timeout") => flags.timeout = Some(parser.value()?.parse()?),
            Short('e') | Long("exec") => flags.exec = true,
            Long("exec-process-spec") => flags.exec_process_spec = Some(path(parser)?),
            Long("exec-attach") => flags.exec_attach = true,
            Short('t') | Long("terminal") => flags.terminal = true,
            Short('i') | Long("stdin") => flags.stdin = true,
            Long("leave-stdin-open") => flags.leave_stdin_open = true,
            Long("socket-dir-path") => flags.socket_dir = Some(path(parser)?),
            Long("full-attach") => flags.full_attach = true,
            Long("sdnotify-socket") => flags.sdnotify_socket = Some(path(parser)?),
            Short('l') | Long("log-path") => flags.log_paths.push(parser.value()?),
            Long("log-size-max") => flags.log_size_max = Some(parser.value()?.parse()?),
            Long("log-rotate") => flags.log_rotate = true,
            Long("log-max-files") => flags.log_max_files = Some(parser.value()?.parse()?),
            Long("log-global-size-max") => {
                flags.log_global_size_max = Some(parser.value()?.parse()?);
            }
            Long("log-tag") => flags.log_tag = Some(parser.value()?.string()?),
            Long("log-label") => flags.log_labels.push(parser.value()?.string()?),
            Long("log-label-file") => flags.log_label_file = Some(path(parser)?),
            Long("no-sync") => flags.no_sync = true,
            Long("no-sync-log") => flags.no_sync_log = true,
            // A journal detail of newer conmons; ours marks partial lines anyway.
            Long("no-container-partial-message") => {}
            // Restricts where conmon may rotate. We rotate only beside the log.
            Long("log-allowlist-dir") => drop(parser.value()?),
            Short('p') | Long("container-pidfile" | "pidfile") => {
                flags.container_pidfile = Some(path(parser)?);
            }
            Short('P') | Long("conmon-pidfile") => flags.conmon_pidfile = Some(path(parser)?),
            Long("exit-dir") => flags.exit_dir = Some(path(parser)?),
            Short('0') | Long("persist-dir") => flags.persist_dir = Some(path(parser)?),
            Long("exit-command") => flags.exit_command = Some(path(parser)?),
            Long("exit-command-arg") => flags.exit_command_args.push(parser.value()?),
            Long("exit-delay") => flags.exit_delay = Some(parser.value()?.parse()?),
            Long("sync") => flags.sync = true,
            Long("no-daemon") => flags.no_daemon = true,
            Long("log-level") => flags.log_level = Some(parser.value()?.parse_with(level)?),
            Long("syslog") => flags.syslog = true,
            Long(name @ ("seccomp-notify-socket" | "seccomp-notify-plugins")) => {
                return Err(
                    format!("--{name}: seccomp notification plugins are not supported").into(),
                );
            }
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    Ok(Parsed::Run(Box::new(flags)))
}

fn path(parser: &mut lexopt::Parser) -> Result<PathBuf, lexopt::Error> {
    parser.value().map(PathBuf::from)
}

fn level(name: &str) -> Result<Level, String> {
    Level::parse(name).ok_or_else(|| "no such log level".to_owned())
}

/// conmon declares `--api-version` without a value and ignores stray words, so
/// callers pass it both with and without its number.
fn api_version(parser: &mut lexopt::Parser) -> Result<u32, lexopt::Error> {
    if let Some(value) = parser.optional_value() {
        return value.parse();
    }
    let is_number = |word: &std::ffi::OsStr| {
        word.to_str()
            .is_some_and(|text| text.parse::<u32>().is_ok())
    };
    match parser
        .try_raw_args()
        .and_then(|mut words| words.next_if(is_number))
    {
        Some(value) => value.parse(),
        None => Ok(1),
    }
}

/// The first line is what podman looks for: the version of conmon whose
/// interface this is.
fn version() -> String {
    format!(
        "conmon version 2.2.1\nqshim version {}",
        env!("CARGO_PKG_VERSION")
    )
}
