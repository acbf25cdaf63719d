//! Help texts, built by clap from the table in [`crate::cli`] when somebody asks for them.

use clap::{Arg, ArgAction, Command};

use crate::cli::{COMMANDS, CommandSpec, GLOBAL_OPTIONS, OptionSpec};

/// The help text of the program.
pub(crate) fn program() -> String {
    let mut program = Command::new("qrun")
        .about("A low-level OCI runtime with runc's command line")
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .args(GLOBAL_OPTIONS.iter().map(argument))
        .override_usage("qrun [global options] command [options] [arguments...]");
    for spec in COMMANDS {
        program = program.subcommand(Command::new(spec.name).about(spec.about));
    }
    program.render_help().to_string()
}

/// The help text of a command.
pub(crate) fn command(spec: &'static CommandSpec) -> String {
    Command::new(spec.name)
        .about(spec.about)
        .args(spec.options.iter().map(argument))
        .override_usage(format!("qrun {} [options] {}", spec.name, spec.arguments))
        .render_help()
        .to_string()
}

/// One option for clap.
fn argument(spec: &'static OptionSpec) -> Arg {
    let mut argument = Arg::new(spec.long).long(spec.long).help(spec.help);
    if let Some(short) = spec.short {
        argument = argument.short(short);
    }
    match spec.value {
        Some(placeholder) => argument.value_name(placeholder).action(ArgAction::Append),
        None => argument.action(ArgAction::SetTrue),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_option_is_in_its_help() {
        let text = program();
        for spec in COMMANDS {
            assert!(text.contains(spec.name), "{}", spec.name);
            let text = command(spec);
            for option in spec.options {
                assert!(
                    text.contains(&format!("--{}", option.long)),
                    "{} {}",
                    spec.name,
                    option.long
                );
            }
        }
    }
}
