//! `qrun-docs man DIR` and `qrun-docs completion SHELL`: the manual and the shells' completions for `qrun`, made from the
//! table that its parser walks. A program of its own, so that `qrun` need not carry what makes them.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, Command};
use clap_complete::{Shell, generate};

#[expect(dead_code, reason = "what only the parser asks for")]
#[path = "../cli/table.rs"]
mod table;

use table::{COMMANDS, CommandSpec, GLOBAL_OPTIONS, OptionSpec};

/// The section of the manual for programs of the administrator.
const SECTION: &str = "8";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["man", directory] => manual(Path::new(directory)),
        ["completion", shell] => completion(shell),
        _ => bail!("usage: qrun-docs man DIR | qrun-docs completion bash|zsh|fish"),
    }
}

/// Writes a page for the program, and one a command.
fn manual(directory: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write the manual into {}", directory.display());
    std::fs::create_dir_all(directory).with_context(failed)?;
    write_page(directory, "qrun", program()).with_context(failed)?;
    for spec in COMMANDS {
        let name = format!("qrun-{}", spec.name);
        let page = command(spec)
            .display_name(&name)
            .bin_name(format!("qrun {}", spec.name));
        write_page(directory, &name, page).with_context(failed)?;
    }
    Ok(())
}

/// Writes one page.
fn write_page(directory: &Path, name: &str, command: Command) -> std::io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .section(SECTION)
        .render(&mut page)?;
    std::fs::write(directory.join(format!("{name}.{SECTION}")), page)
}

/// Writes a completion script to standard output.
fn completion(shell: &str) -> anyhow::Result<()> {
    let shell: Shell = match shell.parse() {
        Ok(shell) => shell,
        Err(_) => bail!("no completion for {shell:?}: bash, zsh or fish"),
    };
    let mut script = Vec::new();
    generate(shell, &mut program(), "qrun", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

/// The program for clap.
fn program() -> Command {
    let program = Command::new("qrun")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A low-level OCI runtime with runc's command line")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args(GLOBAL_OPTIONS.iter().map(option));
    program.subcommands(COMMANDS.iter().map(command))
}

/// A command for clap.
fn command(spec: &'static CommandSpec) -> Command {
    let (least, most) = spec.count;
    let mut command = Command::new(spec.name)
        .about(spec.about)
        .disable_help_flag(true)
        .args(spec.options.iter().map(option));
    let names = spec.arguments.split_whitespace();
    // As many as a command has at most that are not repeated.
    for ((index, name), id) in names.enumerate().zip(["first", "second"]) {
        let name = name.trim_matches(|character| "<>[].".contains(character));
        let mut argument = Arg::new(id).value_name(name).required(index < least);
        if index > 0 && most == usize::MAX {
            argument = argument.num_args(0..);
        }
        command = command.arg(argument);
    }
    command
}

/// An option for clap.
fn option(spec: &'static OptionSpec) -> Arg {
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
    fn pages_and_scripts_have_every_command_and_option() {
        program().debug_assert();
        let mut page = Vec::new();
        clap_mangen::Man::new(program()).render(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap().replace('\\', "");
        let mut script = Vec::new();
        generate(Shell::Bash, &mut program(), "qrun", &mut script);
        let script = String::from_utf8(script).unwrap();
        for spec in COMMANDS {
            assert!(
                page.contains(spec.name) && script.contains(spec.name),
                "{}",
                spec.name
            );
            for option in spec.options {
                assert!(
                    script.contains(&format!("--{}", option.long)),
                    "{}",
                    option.long
                );
            }
        }
    }
}
