//! The command line: which commands and options there are, and how what was typed is taken apart.
//!
//! One table ([`COMMANDS`], [`GLOBAL_OPTIONS`]) describes all of it. The parser below walks it directly, which takes
//! microseconds; [`crate::help`] builds help texts from the same table when somebody asks for help. As in runc,
//! one dash is as good as two (`-root`, `--root`), values follow after `=` or as the next argument, and options may stand
//! before or after the container id, except where the rest of the line belongs to another program (`exec`, `ps`).

use std::ffi::OsString;
use std::path::PathBuf;

use crate::rootless;

mod table;

use table::switch;
pub(crate) use table::{COMMANDS, CommandSpec, GLOBAL_OPTIONS, OptionSpec};

/// What is wrong with a command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// An argument is not UTF-8.
    #[error("argument {0:?} is not valid UTF-8")]
    NotText(OsString),
    /// No such option.
    #[error("flag provided but not defined: -{0}")]
    UnknownOption(String),
    /// An option lacks its value.
    #[error("flag needs an argument: -{0}")]
    ValueMissing(&'static str),
    /// A value that the option cannot take.
    #[error("invalid value {value:?} for flag -{option}: {expected}")]
    BadValue {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A value of `--rootless` that is neither a boolean nor "auto".
    #[error("{0}")]
    BadRootless(String),
    /// No such command.
    #[error("No help topic for '{0}'")]
    UnknownCommand(String),
    /// Too few or too many arguments.
    #[error("qrun: {command:?} requires {expected}")]
    WrongCount {
        /// The command.
        command: &'static str,
        /// How many are right.
        expected: String,
    },
}

/// Options that were given, and the other arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    options: Vec<(&'static str, String)>,
    /// What is not an option.
    pub(crate) arguments: Vec<String>,
}

impl Parsed {
    /// The last value given for an option.
    pub(crate) fn value(&self, long: &str) -> Option<&str> {
        self.options
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .map(|(_, value)| value.as_str())
    }

    /// Every value given for an option.
    pub(crate) fn values<'a>(&'a self, long: &'a str) -> impl Iterator<Item = &'a str> {
        self.options
            .iter()
            .filter(move |(name, _)| *name == long)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, long: &str) -> bool {
        self.value(long).is_some_and(|value| value != "false")
    }

    /// A value as an absolute path, because the current directory changes; an empty one counts as absent.
    pub(crate) fn path(&self, long: &str) -> Option<PathBuf> {
        let value = self.value(long).filter(|value| !value.is_empty())?;
        // Without a current directory a relative path means nothing anyway.
        Some(std::path::absolute(value).unwrap_or_else(|_| value.into()))
    }

    /// A value as a number.
    pub(crate) fn number<T: std::str::FromStr>(
        &self,
        long: &'static str,
    ) -> Result<Option<T>, Error> {
        self.value(long)
            .map(|value| {
                let bad = |_| Error::BadValue {
                    option: long,
                    value: value.to_owned(),
                    expected: "expected a number",
                };
                value.parse().map_err(bad)
            })
            .transpose()
    }

    /// The first argument: the container id in every command that has one.
    pub(crate) fn id(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }
}

/// The arguments as text.
pub(crate) fn arguments(raw: impl Iterator<Item = OsString>) -> Result<Vec<String>, Error> {
    raw.map(|argument| argument.into_string().map_err(Error::NotText))
        .collect()
}

/// Takes arguments apart by a table of options; what follows the first non-option is left alone when `stops`.
///
/// Returns what was found and how many arguments were used.
pub(crate) fn parse(
    arguments: &[String],
    options: &'static [OptionSpec],
    stops: bool,
) -> Result<(Parsed, usize), Error> {
    let mut parsed = Parsed::default();
    let mut position = 0;
    while let Some(argument) = arguments.get(position) {
        let body = argument
            .strip_prefix("--")
            .or_else(|| argument.strip_prefix('-'));
        let Some(body) = body.filter(|body| !body.is_empty() || argument == "--") else {
            if stops {
                break;
            }
            parsed.arguments.push(argument.clone());
            position += 1;
            continue;
        };
        position += 1;
        if argument == "--" {
            if !stops {
                parsed.arguments.extend_from_slice(&arguments[position..]);
                position = arguments.len();
            }
            break;
        }
        let (name, attached) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let spec = find(options, name).ok_or_else(|| Error::UnknownOption(name.to_owned()))?;
        let value = match (spec.value, attached) {
            (_, Some(value)) => value,
            (None, None) => "true".to_owned(),
            (Some(_), None) => {
                let value = arguments
                    .get(position)
                    .ok_or(Error::ValueMissing(spec.long))?;
                position += 1;
                value.clone()
            }
        };
        parsed.options.push((spec.long, value));
    }
    Ok((parsed, position))
}

/// Looks an option up by its long or short name, or as `help`, which every command has.
fn find(options: &'static [OptionSpec], name: &str) -> Option<&'static OptionSpec> {
    const HELP: &OptionSpec = &switch("help", Some('h'), "show help");
    let mut letters = name.chars();
    let letter = letters.next().filter(|_| letters.next().is_none());
    let matches =
        |spec: &&OptionSpec| spec.long == name || (letter.is_some() && spec.short == letter);
    options
        .iter()
        .find(matches)
        .or_else(|| Some(HELP).filter(matches))
}

/// Looks a command up.
pub(crate) fn command(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// Parses a command's own arguments and counts those that are not options.
pub(crate) fn parse_command(
    command: &'static CommandSpec,
    arguments: &[String],
) -> Result<Parsed, Error> {
    let (mut parsed, used) = parse(arguments, command.options, command.stops)?;
    parsed.arguments.extend_from_slice(&arguments[used..]);
    let (least, most) = command.count;
    if parsed.is_on("help") || (least..=most).contains(&parsed.arguments.len()) {
        return Ok(parsed);
    }
    let expected = match (least, most) {
        (0, 0) => "exactly 0 arguments".to_owned(),
        (1, 1) => "exactly 1 argument".to_owned(),
        (least, usize::MAX) => format!("a minimum of {least} arguments"),
        (least, most) => format!("a minimum of {least} and a maximum of {most} arguments"),
    };
    Err(Error::WrongCount {
        command: command.name,
        expected,
    })
}

/// Where state is kept when nothing is said; of other users below `$XDG_RUNTIME_DIR`.
const DEFAULT_ROOT: &str = "/run/qrun";

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// `time="…" level=… msg="…"`
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The options before the command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Global {
    /// Directory of container state.
    pub(crate) root: PathBuf,
    /// Whether that is the user's own run-time directory because nothing was said.
    pub(crate) root_is_own: bool,
    /// Whether a lack of rights on cgroups is passed over.
    pub(crate) rootless: rootless::Choice,
    /// Log file.
    pub(crate) log: Option<PathBuf>,
    /// Log format.
    pub(crate) log_format: LogFormat,
    /// Whether debug messages are logged.
    pub(crate) debug: bool,
    /// Whether systemd makes the cgroups.
    pub(crate) systemd_cgroup: bool,
    /// Whether to show the version and end.
    pub(crate) version: bool,
    /// Whether to show help and end.
    pub(crate) help: bool,
}

/// Parses the options before the command; returns them and the rest, the command's name first.
pub(crate) fn parse_global(arguments: &[String]) -> Result<(Global, &[String]), Error> {
    let (parsed, used) = parse(arguments, GLOBAL_OPTIONS, true)?;
    let log_format = match parsed.value("log-format") {
        None | Some("text" | "") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => {
            let (value, expected) = (other.to_owned(), "expected text or json");
            return Err(Error::BadValue {
                option: "log-format",
                value,
                expected,
            });
        }
    };
    let (root, root_is_own) = match parsed.path("root") {
        Some(root) => (root, false),
        None => match rootless::own_state_directory() {
            Some(root) => (root, true),
            None => (PathBuf::from(DEFAULT_ROOT), false),
        },
    };
    let global = Global {
        root,
        root_is_own,
        rootless: rootless::parse(parsed.value("rootless").unwrap_or(""))
            .map_err(Error::BadRootless)?,
        log: parsed.path("log"),
        log_format,
        debug: parsed.is_on("debug"),
        systemd_cgroup: parsed.is_on("systemd-cgroup"),
        version: parsed.is_on("version"),
        help: parsed.is_on("help"),
    };
    Ok((global, &arguments[used..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn parse_line(line: &str) -> Result<Parsed, Error> {
        let words = words(line);
        parse_command(command(&words[0]).unwrap(), &words[1..])
    }

    #[test]
    fn options_stand_before_or_after_the_id() {
        for line in [
            "create --bundle /b --no-pivot c1",
            "create c1 -bundle=/b --no-pivot",
            "create -b /b c1 -no-pivot",
        ] {
            let parsed = parse_line(line).unwrap();
            assert_eq!(parsed.id(), "c1", "{line}");
            assert_eq!(parsed.value("bundle"), Some("/b"), "{line}");
            assert!(parsed.is_on("no-pivot"), "{line}");
            assert!(!parsed.is_on("no-new-keyring"), "{line}");
        }
    }

    #[test]
    fn the_rest_of_exec_belongs_to_the_program() {
        let parsed = parse_line("exec -t --env A=1 -e B=2 c1 ls -t --all").unwrap();
        assert_eq!(parsed.arguments, ["c1", "ls", "-t", "--all"]);
        assert_eq!(parsed.values("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert_eq!(parse_line("exec -- c1 -x").unwrap().arguments, ["c1", "-x"]);
    }

    #[test]
    fn wrong_lines_are_named() {
        assert_eq!(
            parse_line("create --bunde x c1"),
            Err(Error::UnknownOption("bunde".into()))
        );
        assert_eq!(
            parse_line("create c1 --bundle"),
            Err(Error::ValueMissing("bundle"))
        );
        let wrong = parse_line("start").unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "qrun: \"start\" requires exactly 1 argument"
        );
        assert!(parse_line("kill a b c").is_err());
        let number = parse_line("create --preserve-fds x c1")
            .unwrap()
            .number::<u32>("preserve-fds");
        assert!(matches!(
            number,
            Err(Error::BadValue {
                option: "preserve-fds",
                ..
            })
        ));
    }

    #[test]
    fn global_options_end_at_the_command() {
        let words =
            words("--root /r -log=/l --log-format json --debug --systemd-cgroup run --help");
        let (global, rest) = parse_global(&words).unwrap();
        assert_eq!(global.root, PathBuf::from("/r"));
        assert_eq!(global.log, Some(PathBuf::from("/l")));
        assert_eq!(global.log_format, LogFormat::Json);
        assert!(global.debug && global.systemd_cgroup && !global.help);
        assert_eq!(rest, ["run", "--help"]);
    }

    #[test]
    fn a_switch_can_be_switched_off() {
        assert!(
            !parse_line("delete --force=false c1")
                .unwrap()
                .is_on("force")
        );
    }

    #[test]
    fn no_command_has_two_options_of_one_name() {
        for command in COMMANDS {
            for (index, option) in command.options.iter().enumerate() {
                let same = |other: &OptionSpec| {
                    other.long == option.long
                        || (other.short.is_some() && other.short == option.short)
                };
                assert!(
                    !command.options[index + 1..].iter().any(same),
                    "{} --{}",
                    command.name,
                    option.long
                );
            }
        }
    }
}
