//! What `qengine` says when it is asked for help, or for nothing: the commands, by subject.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;

use clap::Command;

/// Subjects, and the commands that stand under each, in this order. A command that is named nowhere comes last.
const SUBJECTS: [(&str, &[&str]); 5] = [
    (
        "Containers",
        &[
            "run",
            "create",
            "start",
            "stop",
            "restart",
            "kill",
            "rm",
            "ps",
            "logs",
            "exec",
            "attach",
            "wait",
            "inspect",
            "top",
            "stats",
            "port",
            "cp",
            "diff",
            "commit",
            "export",
            "pause",
            "unpause",
            "rename",
            "update",
            "container",
        ],
    ),
    (
        "Images",
        &[
            "pull",
            "push",
            "images",
            "build",
            "builder",
            "tag",
            "rmi",
            "history",
            "save",
            "load",
            "import",
            "search",
            "login",
            "logout",
            "buildBase",
            "image",
        ],
    ),
    ("Networks", &["network", "portmap"]),
    ("Volumes", &["volume"]),
    (
        "System",
        &["info", "version", "events", "system", "completion"],
    ),
];

/// Whether there are no words but `help`, and global flags.
pub(super) fn is_asked_for(words: &[OsString]) -> bool {
    let mut rest = words.iter().skip(1);
    let mut asked = 0;
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("--root" | "--run-root") => drop(rest.next()),
            Some(word) if word.starts_with("--root=") || word.starts_with("--run-root=") => {}
            Some("help" | "--help" | "-h") => asked += 1,
            _ => return false,
        }
    }
    asked <= 1
}

pub(super) fn print(definition: &Command) -> std::io::Result<()> {
    std::io::stdout().write_all(text(definition).as_bytes())
}

fn text(definition: &Command) -> String {
    let visible: Vec<&Command> = definition
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .collect();
    let width = visible
        .iter()
        .map(|command| command.get_name().len())
        .max()
        .unwrap_or(0);
    let line = |command: &Command| {
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        format!(
            "  {:width$}  {}\n",
            command.get_name(),
            about.trim_end_matches('.')
        )
    };
    let mut text = format!(
        "{}\n\nUsage: qengine [OPTIONS] COMMAND …\n",
        definition
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default()
    );
    let mut named = Vec::new();
    for (subject, names) in SUBJECTS {
        let mut lines = String::new();
        for name in names {
            named.push(*name);
            for command in visible.iter().filter(|it| it.get_name() == *name) {
                lines.push_str(&line(command));
            }
        }
        if !lines.is_empty() {
            let _ = write!(text, "\n{subject}:\n{lines}");
        }
    }
    let others = visible.iter().filter(|it| !named.contains(&it.get_name()));
    let others: String = others.map(|command| line(command)).collect();
    if !others.is_empty() {
        let _ = write!(text, "\nOthers:\n{others}");
    }
    text.push_str(
        "\nOptions:
      --root DIR      Directory of images, containers, networks and volumes [default: /var/lib/qengine]
      --run-root DIR  Directory of sockets and pid files, gone after a reboot [default: /run/qengine]
  -V, --version       Print the version
  -h, --help          Print this text

`qengine COMMAND --help` tells more of a command.
",
    );
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_a_subject() {
        let text = text(&crate::cmd::Cli::command());
        assert!(text.contains("\nContainers:\n  run "), "{text}");
        assert!(!text.contains("Others:"), "{text}");
        assert!(!text.contains("cleanup"), "{text}");
    }

    #[test]
    fn no_flag_is_there_twice() {
        crate::cmd::Cli::command().debug_assert();
    }

    #[test]
    fn only_when_nothing_else_is_typed() {
        let words = |text: &str| -> Vec<OsString> { text.split(' ').map(OsString::from).collect() };
        for asked in [
            "qengine",
            "qengine --root /x",
            "qengine help",
            "qengine --help",
            "qengine -h",
        ] {
            assert!(is_asked_for(&words(asked)), "{asked}");
        }
        for other in ["qengine ps", "qengine run --help", "qengine help run"] {
            assert!(!is_asked_for(&words(other)), "{other}");
        }
    }
}
