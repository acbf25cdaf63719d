//! Older spellings of the command line, turned into the ones that clap is told about.
//!
//! Five rules, applied to the words of a command up to the one where the user's own words begin (the image of `run`
//! and `create`, the container of `exec`):
//!
//! 1. `-name X`, `-name=X`: a single dash before a long flag that the command has. A cluster of short flags (`-it`) is
//!    none, since no long flag is called so.
//! 2. `--it`, `--ti`: two dashes before a cluster of short flags.
//! 3. `--oom_kill_disable 1`: a switch whose value stands apart; `0`, `1`, `true`, `false` are joined to it by `=`.
//! 4. `run -l --name hi`: an `-l` with another flag behind it asked for a log, which is kept anyway; docker's `-l` is
//!    followed by a label.
//! 5. `logs -t 5 NAME`: a number behind `-t` is a count of lines (`--tail 5`); without one, `-t` asks for timestamps.
//!
//! Which flags a command has, and which of them take a value, is read from the clap definition itself, so that no list
//! of names has to be kept here.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// Applies the rules. Words before the command (global flags) and words of unknown commands are left as they are.
pub(crate) fn normalise(definition: &Command, words: Vec<OsString>) -> Vec<OsString> {
    let mut out = Vec::with_capacity(words.len());
    let mut rest = words.into_iter().peekable();
    out.extend(rest.next());
    let mut command = definition;
    let mut path_is_open = true;
    while let Some(word) = rest.next() {
        let Some(text) = word.to_str().map(str::to_owned) else {
            out.push(word);
            continue;
        };
        if text == "--" {
            out.push(word);
            break;
        }
        if !text.starts_with('-') || text == "-" {
            if path_is_open {
                if let Some(found) = command.find_subcommand(&text) {
                    command = found;
                    out.push(word);
                    continue;
                }
                path_is_open = false;
            }
            if owns_the_rest(command) {
                // Nothing from here on is a flag of ours, and clap is told so.
                out.push("--".into());
                out.push(word);
                break;
            }
            out.push(word);
            continue;
        }
        let flag = rewrite(command, &text);
        let next = rest
            .peek()
            .and_then(|next| next.to_str())
            .map(str::to_owned);
        if let Some(joined) = apart_switch(command, &flag, next.as_deref()) {
            rest.next();
            out.push(joined.into());
            continue;
        }
        if command.get_name() == "logs" && flag == "-t" {
            let is_count = next
                .as_deref()
                .is_some_and(|next| next.bytes().all(|byte| byte.is_ascii_digit()));
            // The last word is the container, even if its name is a number.
            let mut ahead = rest.clone();
            ahead.next();
            if is_count && ahead.next().is_some() {
                out.push("--tail".into());
                out.extend(rest.next());
                continue;
            }
        }
        if flag == "-l" && owns_the_rest(command) {
            let is_label = next.as_deref().is_some_and(|next| !next.starts_with('-'));
            if !is_label {
                continue;
            }
        }
        let takes_next = takes_next_word(command, &flag);
        out.push(flag.into());
        if takes_next {
            out.extend(rest.next());
        }
    }
    out.extend(rest);
    out
}

/// Commands whose first word that is no flag ends their own flags.
fn owns_the_rest(command: &Command) -> bool {
    matches!(command.get_name(), "run" | "create" | "exec" | "top")
}

fn rewrite(command: &Command, text: &str) -> String {
    let (name, value) = text
        .split_once('=')
        .map_or((text, None), |(name, value)| (name, Some(value)));
    if let Some(long) = name.strip_prefix("--") {
        if matches!(long, "it" | "ti") && find_long(command, long).is_none() {
            return format!("-{long}");
        }
        return text.to_owned();
    }
    let single = &name[1..];
    if single.chars().count() > 1 && find_long(command, single).is_some() {
        return match value {
            Some(value) => format!("--{single}={value}"),
            None => format!("--{single}"),
        };
    }
    text.to_owned()
}

fn apart_switch(command: &Command, flag: &str, next: Option<&str>) -> Option<String> {
    let argument = find_long(command, flag.strip_prefix("--")?)?;
    let optional = argument
        .get_num_args()
        .is_some_and(|range| range.min_values() == 0 && range.max_values() == 1);
    let next = next?;
    (optional && matches!(next, "0" | "1" | "true" | "false")).then(|| format!("{flag}={next}"))
}

/// Whether the word after this flag is its value.
fn takes_next_word(command: &Command, flag: &str) -> bool {
    if let Some(long) = flag.strip_prefix("--") {
        return !long.contains('=') && find_long(command, long).is_some_and(takes_value);
    }
    // In a cluster, the first flag with a value takes the rest of the word, or else the next word.
    let cluster: Vec<char> = flag.chars().skip(1).collect();
    for (index, &short) in cluster.iter().enumerate() {
        let Some(argument) = find(command, |argument| {
            argument.get_short() == Some(short)
                || argument
                    .get_all_short_aliases()
                    .is_some_and(|aliases| aliases.contains(&short))
        }) else {
            return false;
        };
        if takes_value(argument) {
            return index + 1 == cluster.len();
        }
    }
    false
}

fn takes_value(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
        && argument
            .get_num_args()
            .is_none_or(|range| range.min_values() > 0)
}

fn find_long<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    find(command, |argument| {
        argument.get_long() == Some(long)
            || argument
                .get_all_aliases()
                .is_some_and(|aliases| aliases.contains(&long))
    })
}

fn find(command: &Command, wanted: impl Fn(&Arg) -> bool) -> Option<&Arg> {
    command.get_arguments().find(|argument| wanted(argument))
}

/// For error messages: the words as one line.
#[cfg(test)]
fn line(words: &[OsString]) -> String {
    words
        .iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cmd::Cli;

    fn normalised(text: &str) -> String {
        let words = text.split(' ').map(OsString::from).collect();
        line(&normalise(&Cli::command(), words))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_rule() {
        for (typed, meant) in [
            (
                "qengine run -d -cpuset 0 -m 100m -name heroyf -p 110:80 nginx:v1",
                "qengine run -d --cpuset 0 -m 100m --name heroyf -p 110:80 -- nginx:v1",
            ),
            ("qengine run --it base sh", "qengine run -it -- base sh"),
            ("qengine run --ti base sh", "qengine run -ti -- base sh"),
            (
                "qengine run -ti -name=x base sh",
                "qengine run -ti --name=x -- base sh",
            ),
            (
                "qengine run --oom_kill_disable 1 base",
                "qengine run --oom_kill_disable=1 -- base",
            ),
            (
                "qengine run -net none base ls -name x",
                "qengine run --net none -- base ls -name x",
            ),
            (
                "qengine exec -it web find / -name x",
                "qengine exec -it -- web find / -name x",
            ),
            (
                "qengine run -it -l --name hi busybox sh",
                "qengine run -it --name hi -- busybox sh",
            ),
            (
                "qengine run -l a=b busybox sh",
                "qengine run -l a=b -- busybox sh",
            ),
            (
                "qengine run -img a -cmds /bin/bash -name test",
                "qengine run --img a --cmds /bin/bash --name test",
            ),
            (
                "qengine run -ti -image base sh -name x",
                "qengine run -ti --image base -- sh -name x",
            ),
            ("qengine logs -t 5 web", "qengine logs --tail 5 web"),
            ("qengine logs -t 5", "qengine logs -t 5"),
            ("qengine logs -t web", "qengine logs -t web"),
            ("qengine stop -t 5 web", "qengine stop -t 5 web"),
            (
                "qengine run -e name=-name base",
                "qengine run -e name=-name -- base",
            ),
            ("qengine run -- base -name x", "qengine run -- base -name x"),
            (
                "qengine --root /x run -name a base",
                "qengine --root /x run --name a -- base",
            ),
        ] {
            assert_eq!(normalised(typed), meant);
        }
    }
}
