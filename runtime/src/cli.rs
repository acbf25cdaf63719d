//! The command line: which commands and options there are, and how what was typed is taken apart.
//!
//! One table ([`COMMANDS`], [`GLOBAL_OPTIONS`]) describes all of it. The parser below walks it directly, which takes
//! microseconds; [`crate::help`] builds help texts from the same table when somebody asks for help. As in runc,
//! one dash is as good as two (`-root`, `--root`), values follow after `=` or as the next argument, and options may stand
//! before or after the container id, except where the rest of the line belongs to another program (`exec`, `ps`); options of
//! the program itself are understood after the command, too.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::rootless;

mod table;
pub(crate) mod value;

pub(crate) use table::{COMMANDS, CommandSpec, GLOBAL_OPTIONS, HELP, OptionSpec, Takes};

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
    #[error("flag needs an argument: {0}")]
    ValueMissing(String),
    /// A value that the option cannot take.
    #[error("invalid value {value:?} for flag -{option}: {why}")]
    BadValue {
        /// The option.
        option: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A value of `--rootless` that is neither a boolean nor "auto".
    #[error("{0}")]
    BadRootless(String),
    /// A log format that does not exist.
    #[error("invalid log-format: {0}")]
    LogFormat(String),
    /// A cgroup manager that does not exist.
    #[error("invalid cgroup-manager: {0}; one of cgroupfs, systemd, disabled is wanted")]
    CgroupManager(String),
    /// No such command.
    #[error("No help topic for '{0}'")]
    UnknownCommand(String),
    /// Too few or too many arguments.
    #[error("{program}: {command:?} requires {expected} argument(s)")]
    WrongCount {
        /// What the program was called.
        program: String,
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
    /// Options of the program itself that were typed after the command, where they count as well.
    global: Vec<(&'static str, String)>,
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
        self.value(long)
            .is_some_and(|value| truth(value) != Some(false))
    }

    /// A value as an absolute path, because the current directory changes; an empty one counts as absent.
    pub(crate) fn path(&self, long: &str) -> Option<PathBuf> {
        let value = self.value(long).filter(|value| !value.is_empty())?;
        // Without a current directory a relative path means nothing anyway.
        Some(std::path::absolute(value).unwrap_or_else(|_| value.into()))
    }

    /// A value as a number.
    pub(crate) fn number<T: TryFrom<i64>>(&self, long: &str) -> Result<Option<T>, Error> {
        let number = |value: &str| {
            let bad = |why| Error::BadValue {
                option: long.to_owned(),
                value: value.to_owned(),
                why,
            };
            let number = value::integer(value).map_err(|error| bad(error.to_string()))?;
            T::try_from(number).map_err(|_| bad("value out of range".to_owned()))
        };
        self.value(long).map(number).transpose()
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
            .or_else(|| argument.strip_prefix('-').filter(|body| is_name(body)));
        let Some(body) = body else {
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
        let (spec, found) = match find(options, name) {
            Some(spec) => (spec, &mut parsed.options),
            None => (
                find(GLOBAL_OPTIONS, name).ok_or_else(|| Error::UnknownOption(name.to_owned()))?,
                &mut parsed.global,
            ),
        };
        let value = match (spec.value, attached) {
            (Some(_), Some(value)) => checked(spec, name, value)?,
            (None, Some(value)) => checked_switch(name, value)?,
            (None, None) => "true".to_owned(),
            (Some(_), None) => {
                let value = arguments
                    .get(position)
                    .ok_or_else(|| Error::ValueMissing(argument.clone()))?;
                position += 1;
                checked(spec, name, value.clone())?
            }
        };
        found.push((spec.long, value));
    }
    Ok((parsed, position))
}

/// Whether what follows a single dash can be an option, as that of `kill ID -9` cannot.
fn is_name(body: &str) -> bool {
    body.starts_with(char::is_alphabetic)
}

/// A boolean in one of the spellings of Go's `strconv.ParseBool`, which is what a switch may be set to with `=`.
fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The value of `--rootless`: a boolean or "auto".
fn choice(text: &str) -> Result<rootless::Choice, Error> {
    match truth(text) {
        None if !text.is_empty() && !text.eq_ignore_ascii_case("auto") => Err(Error::BadRootless(
            format!("strconv.ParseBool: parsing {text:?}: invalid syntax"),
        )),
        choice => Ok(choice),
    }
}

/// A switch's value, if it is one.
fn checked_switch(option: &str, value: String) -> Result<String, Error> {
    match truth(&value) {
        Some(_) => Ok(value),
        None => Err(Error::BadValue {
            option: option.to_owned(),
            value,
            why: "parse error".to_owned(),
        }),
    }
}

/// An option's value, if it is what the option takes.
fn checked(spec: &OptionSpec, option: &str, value: String) -> Result<String, Error> {
    let wrong = match spec.takes {
        Takes::Text => None,
        Takes::Number => value::integer(&value).err().map(|error| error.to_string()),
        Takes::Duration => value::duration(&value)
            .is_none()
            .then(|| format!("time: invalid duration {value:?}")),
    };
    match wrong {
        Some(why) => Err(Error::BadValue {
            option: option.to_owned(),
            value,
            why,
        }),
        None => Ok(value),
    }
}

/// Looks an option up by its long or short name, or as `help`, which every command has.
fn find(options: &'static [OptionSpec], name: &str) -> Option<&'static OptionSpec> {
    let mut letters = name.chars();
    let letter = letters.next().filter(|_| letters.next().is_none());
    let matches =
        |spec: &&OptionSpec| spec.long == name || (letter.is_some() && spec.short == letter);
    options
        .iter()
        .find(matches)
        .or_else(|| Some(&HELP).filter(matches))
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
    if command.stops
        && used < arguments.len()
        && parsed.arguments.get(1).is_some_and(|it| it == "--")
    {
        // Between the id and what belongs to the other program, as `exec ID -- ls`.
        let after_dashes = arguments[..used].last().is_some_and(|it| it == "--");
        if !after_dashes {
            parsed.arguments.remove(1);
        }
    }
    let (least, most) = command.count;
    if parsed.is_on("help") || (least..=most).contains(&parsed.arguments.len()) {
        return Ok(parsed);
    }
    let expected = match (least, most) {
        (least, most) if least == most => format!("exactly {least}"),
        (least, _) if parsed.arguments.len() < least => format!("a minimum of {least}"),
        (_, most) => format!("a maximum of {most}"),
    };
    Err(Error::WrongCount {
        program: std::env::args().next().unwrap_or_default(),
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

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CgroupManager {
    /// This program.
    #[default]
    Cgroupfs,
    /// systemd; cgroup paths are systemd's then.
    Systemd,
    /// Nobody: containers stay in the caller's cgroup, without limits, as with crun(1) and `podman run --cgroups=disabled`.
    Disabled,
}

/// The options before the command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Global {
    /// Directory of container state.
    pub(crate) root: PathBuf,
    /// Whether that was typed.
    pub(crate) root_is_given: bool,
    /// Whether that is the user's own run-time directory because nothing was typed.
    pub(crate) root_is_own: bool,
    /// Whether a lack of rights on cgroups is passed over.
    pub(crate) rootless: rootless::Choice,
    /// Log file.
    pub(crate) log: Option<PathBuf>,
    /// Log format.
    pub(crate) log_format: LogFormat,
    /// Whether debug messages are logged.
    pub(crate) debug: bool,
    /// Who makes the cgroups.
    pub(crate) cgroup_manager: CgroupManager,
}

/// A command line, taken apart.
#[derive(Debug)]
pub(crate) struct Line {
    /// Options of the program.
    pub(crate) global: Global,
    /// What is wanted.
    pub(crate) action: Action,
}

/// What a command line asks for.
#[derive(Debug)]
pub(crate) enum Action {
    /// The version.
    Version,
    /// The help text of the program.
    Help,
    /// The help text of a command.
    CommandHelp(&'static CommandSpec),
    /// A command.
    Run(&'static CommandSpec, Parsed),
    /// Nothing, because it is wrong; with the command it is about, if it got that far.
    Misuse(Error, Option<&'static CommandSpec>),
}

/// Takes a command line apart. Fails when the program's own options are wrong.
pub(crate) fn parse_line(arguments: &[String]) -> Result<Line, Error> {
    let (before, used) = parse(arguments, GLOBAL_OPTIONS, true)?;
    let mut global = before.options;
    let help = global.iter().any(|(name, _)| *name == "help");
    let action = match arguments[used..].split_first() {
        _ if global.iter().any(|(name, _)| *name == "version") => Action::Version,
        None => Action::Help,
        Some(_) if help => Action::Help,
        Some((name, rest)) if name == "help" || name == "h" => help_for(rest),
        Some((name, rest)) => command_action(name, rest, &mut global),
    };
    Ok(Line {
        global: Global::new(Parsed {
            options: global,
            ..Parsed::default()
        })?,
        action,
    })
}

/// What `help [COMMAND]` asks for.
fn help_for(rest: &[String]) -> Action {
    match rest.first() {
        None => Action::Help,
        Some(name) => match command(name) {
            Some(command) => Action::CommandHelp(command),
            None => Action::Misuse(Error::UnknownCommand(name.clone()), None),
        },
    }
}

/// What a command and its arguments ask for; options of the program among them are added to `global`.
fn command_action(name: &str, rest: &[String], global: &mut Vec<(&'static str, String)>) -> Action {
    let Some(command) = command(name) else {
        return Action::Misuse(Error::UnknownCommand(name.to_owned()), None);
    };
    match parse_command(command, rest) {
        Ok(mut parsed) => {
            global.append(&mut parsed.global);
            match parsed.is_on("help") {
                true => Action::CommandHelp(command),
                false => Action::Run(command, parsed),
            }
        }
        Err(error) => Action::Misuse(error, Some(command)),
    }
}

impl Global {
    /// Makes sense of the program's options.
    fn new(parsed: Parsed) -> Result<Self, Error> {
        let log_format = match parsed.value("log-format") {
            None | Some("text" | "") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => return Err(Error::LogFormat(other.to_owned())),
        };
        let cgroup_manager = match parsed.value("cgroup-manager") {
            None if parsed.is_on("systemd-cgroup") => CgroupManager::Systemd,
            None | Some("cgroupfs") => CgroupManager::Cgroupfs,
            Some("systemd") => CgroupManager::Systemd,
            Some("disabled") => CgroupManager::Disabled,
            Some(other) => return Err(Error::CgroupManager(other.to_owned())),
        };
        let (root, root_is_own) = match parsed.path("root") {
            Some(root) => (root, false),
            None => match rootless::own_state_directory() {
                Some(root) => (root, true),
                None => (PathBuf::from(DEFAULT_ROOT), false),
            },
        };
        Ok(Self {
            root,
            root_is_given: parsed.value("root").is_some(),
            root_is_own,
            rootless: choice(parsed.value("rootless").unwrap_or(""))?,
            log: parsed.path("log"),
            log_format,
            debug: parsed.is_on("debug"),
            cgroup_manager,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn parse_one(line: &str) -> Result<Parsed, Error> {
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
            let parsed = parse_one(line).unwrap();
            assert_eq!(parsed.id(), "c1", "{line}");
            assert_eq!(parsed.value("bundle"), Some("/b"), "{line}");
            assert!(parsed.is_on("no-pivot"), "{line}");
            assert!(!parsed.is_on("no-new-keyring"), "{line}");
        }
    }

    #[test]
    fn the_rest_of_exec_belongs_to_the_program() {
        let parsed = parse_one("exec -t --env A=1 -e B=2 c1 ls -t --all").unwrap();
        assert_eq!(parsed.arguments, ["c1", "ls", "-t", "--all"]);
        assert_eq!(parsed.values("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        for (line, arguments) in [
            ("exec -- c1 -x", ["c1", "-x"].as_slice()),
            ("exec c1 -- ls -t", &["c1", "ls", "-t"]),
            ("exec c1 -- -- ls", &["c1", "--", "ls"]),
            ("exec -- c1 -- ls", &["c1", "--", "ls"]),
            ("exec c1 ls -- -t", &["c1", "ls", "--", "-t"]),
            ("ps c1 -- -o pid", &["c1", "-o", "pid"]),
            ("kill c1 -9", &["c1", "-9"]),
        ] {
            assert_eq!(parse_one(line).unwrap().arguments, arguments, "{line}");
        }
        assert!(parse_one("kill --all c1 9").unwrap().is_on("all"));
        assert!(parse_one("kill c1 9 -a").unwrap().is_on("all"));
    }

    #[test]
    fn wrong_lines_are_named() {
        assert_eq!(
            parse_one("create --bunde x c1"),
            Err(Error::UnknownOption("bunde".into()))
        );
        assert_eq!(
            parse_one("create c1 --bundle"),
            Err(Error::ValueMissing("--bundle".into()))
        );
        let wrong = parse_one("start").unwrap_err();
        let text = wrong.to_string();
        assert!(
            text.ends_with(": \"start\" requires exactly 1 argument(s)"),
            "{text}"
        );
        assert!(parse_one("kill a b c").is_err());
        for (line, text) in [
            (
                "create --preserve-fds x c1",
                "invalid value \"x\" for flag -preserve-fds: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                "exec -g 5,6 c1 id",
                "invalid value \"5,6\" for flag -g: strconv.ParseInt: parsing \"5,6\": invalid syntax",
            ),
            (
                "events --interval x c1",
                "invalid value \"x\" for flag -interval: time: invalid duration \"x\"",
            ),
        ] {
            assert_eq!(parse_one(line).unwrap_err().to_string(), text, "{line}");
        }
        let negative = parse_one("create --preserve-fds -1 c1").unwrap();
        assert!(negative.number::<u32>("preserve-fds").is_err());
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in [
            "--root /r -log=/l --log-format json --debug --systemd-cgroup list --quiet",
            "--root /x list --root /r --quiet -log=/l --log-format json --debug --systemd-cgroup",
        ] {
            let Line { global, action } = parse_line(&words(line)).unwrap();
            assert_eq!(global.root, PathBuf::from("/r"));
            assert_eq!(global.log, Some(PathBuf::from("/l")));
            assert_eq!(global.log_format, LogFormat::Json);
            assert!(global.debug);
            assert_eq!(global.cgroup_manager, CgroupManager::Systemd);
            let Action::Run(command, parsed) = action else {
                panic!("{action:?}");
            };
            assert_eq!(command.name, "list");
            assert!(parsed.is_on("quiet"));
        }
        // The command's own option of that name.
        let Action::Run(_, parsed) = parse_line(&words("spec --rootless")).unwrap().action else {
            panic!("spec is no command");
        };
        assert!(parsed.is_on("rootless"));
    }

    #[test]
    fn cgroup_managers_go_by_name() {
        for (options, manager) in [
            ("", CgroupManager::Cgroupfs),
            ("--cgroup-manager cgroupfs", CgroupManager::Cgroupfs),
            ("--cgroup-manager=systemd", CgroupManager::Systemd),
            (
                "--systemd-cgroup --cgroup-manager disabled",
                CgroupManager::Disabled,
            ),
        ] {
            let line = parse_line(&words(&format!("{options} list"))).unwrap();
            assert_eq!(line.global.cgroup_manager, manager, "{options}");
        }
        assert!(parse_line(&words("--cgroup-manager none list")).is_err());
    }

    #[test]
    fn help_and_version_are_asked_for_in_many_ways() {
        for line in ["", "-h", "--help", "help", "h", "--help list"] {
            let action = parse_line(&words(line)).unwrap().action;
            assert!(matches!(action, Action::Help), "{line}: {action:?}");
        }
        for line in [
            "help list",
            "h list",
            "list -h",
            "list --help",
            "list -help",
        ] {
            let action = parse_line(&words(line)).unwrap().action;
            assert!(
                matches!(action, Action::CommandHelp(command) if command.name == "list"),
                "{line}: {action:?}"
            );
        }
        for line in ["-v", "--version", "-version list"] {
            let action = parse_line(&words(line)).unwrap().action;
            assert!(matches!(action, Action::Version), "{line}: {action:?}");
        }
        for line in ["foo", "help foo", "foo -h", "list --bogus", "list x"] {
            let action = parse_line(&words(line)).unwrap().action;
            assert!(matches!(action, Action::Misuse(..)), "{line}: {action:?}");
        }
        assert!(parse_line(&words("--bogus list")).is_err());
        assert!(parse_line(&words("--log-format xml list")).is_err());
    }

    #[test]
    fn choices() {
        for (text, expected) in [
            ("", None),
            ("auto", None),
            ("AUTO", None),
            ("true", Some(true)),
            ("T", Some(true)),
            ("0", Some(false)),
            ("False", Some(false)),
        ] {
            assert_eq!(choice(text), Ok(expected), "{text:?}");
        }
        assert_eq!(
            choice("yes").unwrap_err().to_string(),
            "strconv.ParseBool: parsing \"yes\": invalid syntax"
        );
    }

    #[test]
    fn a_switch_can_be_switched_off() {
        for value in ["false", "0", "F"] {
            let line = format!("delete --force={value} c1");
            assert!(!parse_one(&line).unwrap().is_on("force"), "{line}");
        }
        assert!(parse_one("delete --force=1 c1").unwrap().is_on("force"));
        let wrong = parse_command(command("delete").unwrap(), &words("--force=maybe c1"));
        assert!(matches!(wrong, Err(Error::BadValue { .. })));
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
