//! Help texts and the version, laid out as runc does, from the table in [`crate::cli`].

use crate::cli::{COMMANDS, CommandSpec, GLOBAL_OPTIONS, HELP, OptionSpec};

/// What the program does, after its name.
const ABOUT: &str = "Open Container Initiative runtime";

/// The release of runc that this program behaves like. A file name `runc` makes the program answer with it, because those who
/// find a `runc` in their path ask it for its version.
pub(crate) const RUNC_VERSION: &str = "1.5.0";

/// The name the program was called by: `qrun`, or `runc` where it is installed as that.
pub(crate) fn name() -> &'static str {
    let called = std::env::args_os().next().unwrap_or_default();
    match std::path::Path::new(&called).file_name() {
        Some(name) if name == "runc" => "runc",
        _ => "qrun",
    }
}

/// The text of `--version`.
pub(crate) fn version() -> String {
    let own = env!("CARGO_PKG_VERSION");
    let name = name();
    let version = match name {
        "runc" => format!("{RUNC_VERSION}+qrun.{own}"),
        _ => own.to_owned(),
    };
    let commit = option_env!("QSTACK_COMMIT").unwrap_or("unknown");
    let spec = crate::spec::VERSION;
    format!("{name} version {version}\ncommit: {commit}\nspec: {spec}\n")
}

/// The help text of the program.
pub(crate) fn program() -> String {
    let name = name();
    let mut text = format!(
        "NAME:\n   {name} - {ABOUT}\n\nUSAGE:\n   {name} [global options] [command [command options]]\n\nVERSION:\n   {}\n",
        env!("CARGO_PKG_VERSION")
    );
    text.push_str("\nCOMMANDS:\n");
    let commands = COMMANDS
        .iter()
        .map(|command| (command.name.to_owned(), command.about));
    let help = ("help, h".to_owned(), "list the commands, or tell of one");
    push_columns(&mut text, commands.chain([help]).collect());
    push_options(&mut text, "GLOBAL OPTIONS", GLOBAL_OPTIONS);
    text
}

/// The help text of a command.
pub(crate) fn command(spec: &'static CommandSpec) -> String {
    let name = name();
    let mut text = format!(
        "NAME:\n   {name} {} - {}\n\nUSAGE:\n   {name} {} [options] {}\n",
        spec.name, spec.about, spec.name, spec.arguments
    );
    push_options(&mut text, "OPTIONS", spec.options.iter().chain([&HELP]));
    let inherited = |option: &&OptionSpec| {
        option.long != HELP.long
            && option.long != "version"
            && !spec.options.iter().any(|own| own.long == option.long)
    };
    push_options(
        &mut text,
        "GLOBAL OPTIONS",
        GLOBAL_OPTIONS.iter().filter(inherited),
    );
    text
}

/// A section of options: `--bundle DIR, -b DIR  path of the bundle`.
fn push_options<'a>(
    text: &mut String,
    title: &str,
    options: impl IntoIterator<Item = &'a OptionSpec>,
) {
    text.push_str(&format!("\n{title}:\n"));
    let spelling = |option: &OptionSpec| {
        let value = option
            .value
            .map_or(String::new(), |value| format!(" {value}"));
        let short = option
            .short
            .map_or(String::new(), |short| format!(", -{short}{value}"));
        format!("--{}{value}{short}", option.long)
    };
    let rows = options
        .into_iter()
        .map(|option| (spelling(option), option.help));
    push_columns(text, rows.collect());
}

/// Two columns, the first as wide as it must be.
fn push_columns(text: &mut String, rows: Vec<(String, &str)>) {
    let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    for (left, right) in rows {
        text.push_str(&format!("   {left:width$}  {right}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_option_is_in_its_help() {
        let text = program();
        for spec in COMMANDS {
            assert!(text.contains(&format!("\n   {}  ", spec.name)), "{text}");
            let text = command(spec);
            for option in spec.options {
                assert!(
                    text.contains(&format!("\n   --{}", option.long)),
                    "{} {}",
                    spec.name,
                    option.long
                );
            }
        }
    }

    #[test]
    fn layout_is_the_one_that_tools_look_for() {
        let text = program();
        assert!(text.starts_with("NAME:\n   qrun - Open Container Initiative runtime\n"));
        let text = command(crate::cli::command("spec").unwrap());
        assert!(text.starts_with("NAME:\n   qrun spec - "), "{text}");
        assert!(text.contains("\n   --bundle DIR, -b DIR  "), "{text}");
        assert_eq!(text.matches("--rootless").count(), 1, "{text}");
        let lines: Vec<_> = version().lines().map(str::to_owned).collect();
        assert!(lines[0].starts_with("qrun version "));
        assert!(lines[1].starts_with("commit: ") && lines[2].starts_with("spec: "));
    }
}
