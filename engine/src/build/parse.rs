//! From the text of a Dockerfile to its instructions.
//!
//! Pure: nothing is looked up and no variable is replaced here.
//!
//! Governing text: Dockerfile reference.

mod mount;

use bundle_tools::image::Healthcheck;

use super::ParseError;
use super::instruction::{Command, Copy, From, Instruction, Run, Step};
use super::lines::{self, Heredoc, Line};
use super::word;

/// Every instruction there is.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A parsed file.
#[derive(Debug)]
pub struct Dockerfile {
    /// The character that escapes.
    pub escape: char,
    /// Its instructions.
    pub steps: Vec<Step>,
}

/// Reads a Dockerfile.
///
/// # Errors
/// The first line that can't be understood, by its number.
pub fn parse(text: &str) -> Result<Dockerfile, ParseError> {
    let file = lines::read(text)?;
    let steps = file
        .lines
        .into_iter()
        .map(|line| step(line, file.escape))
        .collect::<Result<_, _>>()?;
    Ok(Dockerfile {
        escape: file.escape,
        steps,
    })
}

/// Reads one instruction that a base image carries for builds on top of it.
///
/// # Errors
/// When it can't be understood.
pub fn trigger(text: &str) -> Result<Step, ParseError> {
    let mut file = lines::read(text)?;
    match (file.lines.pop(), file.lines.is_empty()) {
        (Some(mut line), true) => {
            line.number = 0;
            step(line, '\\')
        }
        _ => Err(ParseError {
            line: 0,
            message: format!("ONBUILD {text:?} of the base image is no single instruction"),
        }),
    }
}

fn step(line: Line, escape: char) -> Result<Step, ParseError> {
    let number = line.number;
    let mut parser = Parser {
        escape,
        heredocs: line.heredocs,
    };
    let (keyword, rest) = split_keyword(&line.text);
    let instruction = parser
        .instruction(&keyword, rest)
        .map_err(|message| ParseError {
            line: number,
            message,
        })?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    Ok(Step {
        line: number,
        text: format!("{keyword} {}", words.join(" ")),
        instruction,
    })
}

fn split_keyword(text: &str) -> (String, &str) {
    let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (keyword.to_ascii_uppercase(), rest.trim())
}

struct Parser {
    escape: char,
    heredocs: Vec<Heredoc>,
}

type Parsed<T> = Result<T, String>;

impl Parser {
    fn instruction(&mut self, keyword: &str, rest: &str) -> Parsed<Instruction> {
        if !KEYWORDS.contains(&keyword) {
            return Err(unknown(keyword));
        }
        if rest.is_empty() && !matches!(keyword, "CMD" | "ENTRYPOINT") {
            return Err(format!("{keyword} takes at least one argument"));
        }
        Ok(match keyword {
            "FROM" => Instruction::From(from(rest)?),
            "RUN" => Instruction::Run(self.run(rest)?),
            "COPY" => Instruction::Copy(self.copy(keyword, rest)?),
            "ADD" => Instruction::Add(self.copy(keyword, rest)?),
            "ENV" => Instruction::Env(self.pairs(keyword, rest)?),
            "LABEL" => Instruction::Label(self.pairs(keyword, rest)?),
            "ARG" => Instruction::Arg(self.arguments(rest)?),
            "WORKDIR" => Instruction::Workdir(rest.to_owned()),
            "USER" => Instruction::User(single(keyword, rest)?),
            "STOPSIGNAL" => Instruction::StopSignal(single(keyword, rest)?),
            "ENTRYPOINT" => Instruction::Entrypoint(command(rest)),
            "CMD" => Instruction::Cmd(command(rest)),
            "EXPOSE" => Instruction::Expose(rest.to_owned()),
            "VOLUME" => Instruction::Volume(volumes(rest)?),
            "SHELL" => Instruction::Shell(
                json_list(rest)
                    .filter(|list| !list.is_empty())
                    .ok_or("SHELL takes a JSON list, as in SHELL [\"/bin/bash\", \"-c\"]")?,
            ),
            "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(rest)?),
            "ONBUILD" => self.on_build(rest)?,
            _ => Instruction::Maintainer(rest.to_owned()),
        })
    }

    fn run(&mut self, rest: &str) -> Parsed<Run> {
        let (flags, rest) = flags(rest);
        let mut network = None;
        let mut mounts = Vec::new();
        for (name, value) in flags {
            match name {
                "network" => network = Some(value.unwrap_or_default().to_owned()),
                "security" if value == Some("sandbox") => {}
                "security" => {
                    return Err("RUN --security=insecure is not supported".to_owned());
                }
                "mount" => mounts.push(mount::mount(value.unwrap_or_default())?),
                other => return Err(unknown_flag("RUN", other)),
            }
        }
        if rest.is_empty() {
            return Err("RUN takes a command".to_owned());
        }
        Ok(Run {
            command: command(rest),
            network,
            mounts,
            heredocs: std::mem::take(&mut self.heredocs),
        })
    }

    fn copy(&mut self, keyword: &str, rest: &str) -> Parsed<Copy> {
        let (flags, rest) = flags(rest);
        let mut copy = Copy::default();
        let is_true = |name: &str, value: Option<&str>| match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(format!(
                "{keyword} --{name}={other}: it takes true or false"
            )),
        };
        for (name, value) in flags {
            let text = || {
                value
                    .filter(|value| !value.is_empty())
                    .map(str::to_owned)
                    .ok_or_else(|| format!("{keyword} --{name} takes a value"))
            };
            match (keyword, name) {
                ("COPY", "from") => copy.from = Some(text()?),
                (_, "chown") => copy.chown = Some(text()?),
                (_, "chmod") => copy.chmod = Some(text()?),
                (_, "exclude") => copy.exclude.push(text()?),
                ("COPY", "parents") => copy.parents = is_true(name, value)?,
                ("ADD", "checksum") => copy.checksum = Some(text()?),
                ("ADD", "unpack") => copy.unpack = Some(is_true(name, value)?),
                // How the layer is kept; what is in it is the same.
                (_, "link") => drop(is_true(name, value)?),
                (_, other) => return Err(unknown_flag(keyword, other)),
            }
        }
        let mut words = match json_list(rest) {
            Some(words) => words,
            None => rest.split_whitespace().map(str::to_owned).collect(),
        };
        if words.len() < 2 {
            return Err(format!(
                "{keyword} takes at least one source and a destination"
            ));
        }
        copy.destination = words.pop().unwrap_or_default();
        copy.heredocs = std::mem::take(&mut self.heredocs);
        copy.sources = words
            .into_iter()
            .filter(|word| !copy.heredocs.iter().any(|heredoc| heredoc.marker == *word))
            .collect();
        if copy.from.is_some() && !copy.heredocs.is_empty() {
            return Err("COPY --from does not go with a heredoc".to_owned());
        }
        Ok(copy)
    }

    /// `NAME=VALUE …`, or the old `NAME VALUE` with everything after the name as the value.
    fn pairs(&self, keyword: &str, rest: &str) -> Parsed<Vec<(String, String)>> {
        let words = word::split(rest, self.escape);
        let first = words.first().map(String::as_str).unwrap_or_default();
        if !first.contains('=') {
            let (name, value) = rest
                .split_once(char::is_whitespace)
                .ok_or_else(|| format!("{keyword} takes NAME=VALUE"))?;
            return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
        }
        words
            .iter()
            .map(|word| match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
                _ => Err(format!(
                    "{keyword}: {word:?} is not NAME=VALUE; a value with spaces needs quotes"
                )),
            })
            .collect()
    }

    fn arguments(&self, rest: &str) -> Parsed<Vec<(String, Option<String>)>> {
        word::split(rest, self.escape)
            .into_iter()
            .map(|word| match word.split_once('=') {
                Some(("", _)) => Err(format!("ARG: {word:?} has no name")),
                Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
                None => Ok((word, None)),
            })
            .collect()
    }

    fn on_build(&mut self, rest: &str) -> Parsed<Instruction> {
        let (keyword, inner) = split_keyword(rest);
        if matches!(keyword.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            return Err(format!("ONBUILD can't have {keyword}"));
        }
        let heredocs = self.heredocs.clone();
        self.instruction(&keyword, inner)?;
        let mut text = rest.to_owned();
        for heredoc in heredocs {
            text = format!("{text}\n{}{}\n", heredoc.content, heredoc.name);
        }
        Ok(Instruction::OnBuild(text))
    }
}

fn unknown(keyword: &str) -> String {
    let near = KEYWORDS
        .into_iter()
        .find(|known| distance(known, keyword) <= 2)
        .map(|known| format!("; did you mean {known}?"));
    format!("unknown instruction {keyword}{}", near.unwrap_or_default())
}

fn unknown_flag(keyword: &str, flag: &str) -> String {
    format!("{keyword} has no flag --{flag}")
}

/// Levenshtein's, for one hint in an error message.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().take(20).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, &there) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != there);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

/// The flags before the arguments: names, and values where there are any.
fn flags(mut rest: &str) -> (Vec<(&str, Option<&str>)>, &str) {
    let mut flags = Vec::new();
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        rest = after.trim_start();
        if flag.is_empty() {
            break;
        }
        flags.push(match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        });
    }
    (flags, rest)
}

fn json_list(text: &str) -> Option<Vec<String>> {
    if !text.starts_with('[') {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// What looks like a JSON list and is none is a line for the shell, as docker has it.
fn command(rest: &str) -> Command {
    match json_list(rest) {
        Some(list) => Command::Exec(list),
        None => Command::Shell(rest.to_owned()),
    }
}

fn single(keyword: &str, rest: &str) -> Parsed<String> {
    if rest.split_whitespace().count() == 1 {
        Ok(rest.to_owned())
    } else {
        Err(format!("{keyword} takes exactly one argument"))
    }
}

fn volumes(rest: &str) -> Parsed<Vec<String>> {
    let list =
        json_list(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
    if list.iter().any(|path| path.trim().is_empty()) {
        return Err("VOLUME: an empty path".to_owned());
    }
    Ok(list)
}

fn from(rest: &str) -> Parsed<From> {
    let (flags, rest) = flags(rest);
    let mut platform = None;
    for (name, value) in flags {
        match name {
            "platform" => platform = value.map(str::to_owned),
            other => return Err(unknown_flag("FROM", other)),
        }
    }
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (image, name) = match words[..] {
        [image] => (image, None),
        [image, keyword, name] if keyword.eq_ignore_ascii_case("as") => (image, Some(name)),
        _ => return Err("FROM takes an image, and after AS a name".to_owned()),
    };
    if let Some(name) = name {
        let starts_well = name.starts_with(|letter: char| letter.is_ascii_alphabetic());
        let is_letter =
            |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.');
        if !starts_well || !name.chars().all(is_letter) {
            return Err(format!(
                "invalid stage name {name:?}: a letter, then letters, digits, `_`, `-`, `.`"
            ));
        }
    }
    Ok(From {
        image: image.to_owned(),
        name: name.map(str::to_ascii_lowercase),
        platform,
    })
}

fn healthcheck(rest: &str) -> Parsed<Healthcheck> {
    let (flags, rest) = flags(rest);
    let mut check = Healthcheck::default();
    for (name, value) in flags {
        let value = value.ok_or_else(|| format!("HEALTHCHECK --{name} takes a value"))?;
        let time = || {
            duration(value).ok_or_else(|| {
                format!("HEALTHCHECK --{name}={value}: expected a time such as 30s or 1m30s")
            })
        };
        match name {
            "interval" => check.interval = time()?,
            "timeout" => check.timeout = time()?,
            "start-period" => check.start_period = time()?,
            "start-interval" => check.start_interval = time()?,
            "retries" => {
                check.retries = value
                    .parse()
                    .ok()
                    .filter(|&count: &i64| count >= 0)
                    .ok_or_else(|| format!("HEALTHCHECK --retries={value}: expected a number"))?;
            }
            other => return Err(unknown_flag("HEALTHCHECK", other)),
        }
    }
    let (kind, rest) = split_keyword(rest);
    check.test = match (kind.as_str(), rest.is_empty()) {
        ("NONE", true) => vec!["NONE".to_owned()],
        ("CMD", false) => match command(rest) {
            Command::Shell(line) => vec!["CMD-SHELL".to_owned(), line],
            Command::Exec(list) => [vec!["CMD".to_owned()], list].concat(),
        },
        _ => return Err("HEALTHCHECK takes CMD and a command, or NONE".to_owned()),
    };
    Ok(check)
}

/// `1h2m3.5s`, `500ms`, in nanoseconds.
fn duration(text: &str) -> Option<i64> {
    let mut total: f64 = 0.0;
    let mut rest = text;
    if rest == "0" {
        return Some(0);
    }
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|letter: char| letter.is_ascii_digit())
            .unwrap_or(rest.len());
        let scale = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        rest = &rest[end..];
        total += number * scale;
    }
    let is_sane = !text.is_empty() && total.is_finite() && total < 9e18;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the range is checked above"
    )]
    is_sane.then_some(total.round() as i64)
}

#[cfg(test)]
mod tests;
