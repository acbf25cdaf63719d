//! What instructions do to the image's configuration.

use bundle_tools::image::ContainerConfig;
use serde_json::json;

use super::instruction::Command;
use crate::container::create::clean_path;

/// The shell of commands in shell form, unless `SHELL` says otherwise.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// The value of a variable.
pub(super) fn env(config: &ContainerConfig, name: &str) -> Option<String> {
    let find = |entry: &String| {
        let (key, value) = entry.split_once('=')?;
        (key == name).then(|| value.to_owned())
    };
    config.env.iter().find_map(find)
}

/// Sets a variable, in its old place if it has one.
pub(super) fn set_env(config: &mut ContainerConfig, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    let prefix = format!("{name}=");
    match config.env.iter_mut().find(|it| it.starts_with(&prefix)) {
        Some(old) => *old = entry,
        None => config.env.push(entry),
    }
}

/// The words that run a command.
pub(super) fn words(config: &ContainerConfig, command: &Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(line) => shell(config, line),
    }
}

/// The words that have the shell run a line.
pub(super) fn shell(config: &ContainerConfig, line: &str) -> Vec<String> {
    let mut words = config
        .shell
        .clone()
        .unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
    words.push(line.to_owned());
    words
}

/// `80`, `80/udp`, `8000-8010/tcp` become keys of the configuration.
pub(super) fn expose(config: &mut ContainerConfig, text: &str) -> Result<(), String> {
    let bad = || format!("EXPOSE {text}: expected PORT[-LAST][/tcp|/udp|/sctp]");
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    // A mapping of docker's old days: the host's port was never looked at.
    let ports = ports.rsplit(':').next().unwrap_or(ports);
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let port = |text: &str| text.parse().ok().filter(|&port: &u16| port > 0);
    let (first, last) = (port(first).ok_or_else(bad)?, port(last).ok_or_else(bad)?);
    if last < first {
        return Err(bad());
    }
    for port in first..=last {
        config
            .exposed_ports
            .insert(format!("{port}/{protocol}"), json!({}));
    }
    Ok(())
}

/// The absolute path that `WORKDIR` or a destination means.
pub(super) fn absolute(config: &ContainerConfig, path: &str) -> String {
    let directory = match config.working_dir.as_str() {
        "" => "/",
        directory => directory,
    };
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{directory}/{path}")
    };
    clean_path(&whole)
        .or_else(|| clean_path(&format!("/{whole}")))
        .unwrap_or_else(|| "/".to_owned())
}

/// Checks `STOPSIGNAL`: a name, with or without SIG, or a number.
pub(super) fn stop_signal(text: &str) -> Result<String, String> {
    let known = match text.parse::<i32>() {
        Ok(number) => (1..=64).contains(&number),
        Err(_) => {
            let name = text.to_ascii_uppercase();
            let name = name.strip_prefix("SIG").unwrap_or(&name);
            name.starts_with("RTMIN")
                || name.starts_with("RTMAX")
                || format!("SIG{name}")
                    .parse::<nix::sys::signal::Signal>()
                    .is_ok()
        }
    };
    if known {
        Ok(text.to_owned())
    } else {
        Err(format!("STOPSIGNAL {text}: there is no such signal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_keep_their_place() {
        let mut config = ContainerConfig::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "3=x")] {
            set_env(&mut config, name, value);
        }
        assert_eq!(config.env, ["A=3=x", "B=2"]);
        assert_eq!(env(&config, "A").as_deref(), Some("3=x"));
        assert_eq!(env(&config, "C"), None);
    }

    #[test]
    fn ports_are_checked() {
        let mut config = ContainerConfig::default();
        for text in ["80", "53/UDP", "8000-8001", "1:90"] {
            expose(&mut config, text).unwrap();
        }
        let ports: Vec<_> = config.exposed_ports.keys().collect();
        assert_eq!(
            ports,
            ["53/udp", "80/tcp", "8000/tcp", "8001/tcp", "90/tcp"]
        );
        for text in ["", "x", "0", "70000", "80/icmp", "9-8"] {
            assert!(expose(&mut config, text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_become_absolute() {
        let mut config = ContainerConfig::default();
        assert_eq!(absolute(&config, "a"), "/a");
        config.working_dir = "/w".to_owned();
        for (path, expected) in [
            ("a/../b/", "/w/b"),
            ("/x", "/x"),
            (".", "/w"),
            ("../..", "/"),
        ] {
            assert_eq!(absolute(&config, path), expected);
        }
    }

    #[test]
    fn signals_are_checked() {
        for text in ["SIGTERM", "kill", "9", "SIGRTMIN+3"] {
            assert!(stop_signal(text).is_ok(), "{text}");
        }
        for text in ["SIGNOPE", "0", "99"] {
            assert!(stop_signal(text).is_err(), "{text}");
        }
    }
}
