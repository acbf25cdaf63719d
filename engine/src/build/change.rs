//! Single instructions that change an image's configuration outside of a build: `commit --change`, `import --change`.

use bundle_tools::image::ContainerConfig;
use serde_json::json;

use super::instruction::Instruction;
use super::{ParseError, config, parse, word};

/// Applies instructions in their order. Those that docker allows: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL,
/// ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR.
///
/// # Errors
/// The first one that can't be understood, or is none of these.
pub fn change(config: &mut ContainerConfig, changes: &[String]) -> Result<(), ParseError> {
    let mut own_command = false;
    for text in changes {
        let wrong = |message: String| ParseError {
            line: 0,
            message: format!("--change {text:?}: {message}"),
        };
        let step = parse::trigger(text).map_err(|error| wrong(error.message))?;
        one(config, &step.instruction, &mut own_command).map_err(wrong)?;
    }
    Ok(())
}

fn one(
    config: &mut ContainerConfig,
    instruction: &Instruction,
    own_command: &mut bool,
) -> Result<(), String> {
    let before = config.clone();
    let expand = |text: &str| -> Result<String, String> {
        let lookup = |name: &str| config::env(&before, name);
        word::expand(text, '\\', &lookup).map_err(|error| error.to_string())
    };
    match instruction {
        Instruction::Cmd(command) => {
            *own_command = true;
            config.cmd = Some(config::words(config, command));
        }
        Instruction::Entrypoint(command) => {
            // The command was meant for the entry point there was.
            if !*own_command {
                config.cmd = None;
            }
            let words = config::words(config, command);
            config.entrypoint = Some(words).filter(|words| !words.is_empty());
        }
        Instruction::Env(pairs) => {
            for (name, value) in pairs {
                config::set_env(config, &expand(name)?, &expand(value)?);
            }
        }
        Instruction::Label(pairs) => {
            for (name, value) in pairs {
                config.labels.insert(expand(name)?, expand(value)?);
            }
        }
        Instruction::Expose(ports) => {
            for port in expand(ports)?.split_whitespace() {
                config::expose(config, port)?;
            }
        }
        Instruction::Volume(paths) => {
            for path in paths {
                let path = config::absolute(config, &expand(path)?);
                config.volumes.insert(path, json!({}));
            }
        }
        Instruction::Workdir(path) => config.working_dir = config::absolute(config, &expand(path)?),
        Instruction::User(user) => config.user = expand(user)?,
        Instruction::StopSignal(signal) => {
            config.stop_signal = Some(config::stop_signal(&expand(signal)?)?);
        }
        Instruction::Healthcheck(check) => config.healthcheck = Some(check.clone()),
        Instruction::OnBuild(text) => config
            .on_build
            .get_or_insert_with(Vec::new)
            .push(text.clone()),
        _ => {
            return Err(
                "only CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and \
                 WORKDIR can be changed"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_instructions_change_the_configuration() {
        let mut config = ContainerConfig {
            cmd: Some(vec!["old".to_owned()]),
            env: vec!["A=1".to_owned()],
            ..ContainerConfig::default()
        };
        let changes = [
            r#"ENTRYPOINT ["/init"]"#,
            "ENV B=${A}2 C='x y'",
            "WORKDIR /srv",
            "VOLUME data",
            "EXPOSE 80 53/udp",
            "LABEL a=b",
            "USER heron",
            "STOPSIGNAL SIGQUIT",
            "ONBUILD RUN true",
            "HEALTHCHECK NONE",
        ]
        .map(str::to_owned);
        change(&mut config, &changes).unwrap();
        assert_eq!(
            config.entrypoint.as_deref(),
            Some(&["/init".to_owned()][..])
        );
        assert_eq!(config.cmd, None);
        assert_eq!(config.env, ["A=1", "B=12", "C=x y"]);
        assert!(config.volumes.contains_key("/srv/data"));
        assert_eq!(config.exposed_ports.len(), 2);
        assert_eq!((&*config.user, &*config.working_dir), ("heron", "/srv"));
        assert_eq!(config.labels["a"], "b");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert!(config.on_build.is_some() && config.healthcheck.is_some());
        change(&mut config, &["cmd echo hi".to_owned()]).unwrap();
        assert_eq!(config.cmd.unwrap(), ["/bin/sh", "-c", "echo hi"]);
    }

    #[test]
    fn others_are_refused() {
        for text in ["RUN true", "COPY a b", "FROM x", "", "NONSENSE", "EXPOSE x"] {
            let error = change(&mut ContainerConfig::default(), &[text.to_owned()]).unwrap_err();
            assert!(error.message.starts_with("--change "), "{}", error.message);
        }
    }
}
