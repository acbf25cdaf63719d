//! What to run: the image and the command, as words or, in an older spelling, as flags.

use std::io::IsTerminal;

use anyhow::{Result, bail};
use clap::Args;

/// `IMAGE COMMAND…`, or `--image IMAGE COMMAND…`, or `--image IMAGE --cmds 'COMMAND…'`. That no flag comes behind the
/// first word is made sure of by [`super::normalise`], which puts `--` there.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct Words {
    /// The image, by name or id, instead of the first word; every word is the command's then
    #[arg(long = "image", alias = "img", value_name = "IMAGE")]
    flag: Option<String>,
    /// The command, instead of words; on a terminal it gets one, as with -it
    #[arg(long, value_name = "COMMAND", requires = "flag")]
    cmds: Option<String>,
    /// Image to run
    #[arg(value_name = "IMAGE")]
    first: Option<String>,
    /// Command and arguments; the image's own when not given
    #[arg(value_name = "COMMAND")]
    rest: Vec<String>,
}

/// What [`Words`] mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    /// The command came by `--cmds`, from a person at a terminal: it is to have that terminal.
    pub(crate) interactive: bool,
}

impl Words {
    /// Tells the image from the command.
    pub(crate) fn meaning(self) -> Result<Meaning> {
        let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        self.told_apart(at_terminal)
    }

    fn told_apart(self, at_terminal: bool) -> Result<Meaning> {
        let Some(image) = self.flag else {
            let Some(image) = self.first else {
                bail!("no image given: expected [OPTIONS] IMAGE [COMMAND]…");
            };
            return Ok(Meaning {
                image,
                command: self.rest,
                interactive: false,
            });
        };
        let mut command: Vec<String> = self
            .cmds
            .iter()
            .flat_map(|text| text.split_whitespace())
            .map(str::to_owned)
            .collect();
        command.extend(self.first);
        command.extend(self.rest);
        Ok(Meaning {
            image,
            command,
            interactive: self.cmds.is_some() && at_terminal,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[arg(short)]
        t: bool,
        #[command(flatten)]
        words: Words,
    }

    fn meaning(line: &str) -> (String, String, bool) {
        let words = std::iter::once("run").chain(line.split(' '));
        let line = Line::try_parse_from(words).unwrap();
        let found = line.words.told_apart(true).unwrap();
        (found.image, found.command.join(" "), found.interactive)
    }

    #[test]
    fn each_spelling_tells_image_and_command() {
        for (typed, image, command, interactive) in [
            ("-t base", "base", "", false),
            ("-t -- base sh -c -t", "base", "sh -c -t", false),
            ("--image base -- sh -c -t", "base", "sh -c -t", false),
            ("--image base", "base", "", false),
            (
                "--img ubuntu:20.04 --cmds /bin/bash",
                "ubuntu:20.04",
                "/bin/bash",
                true,
            ),
        ] {
            let expected = (image.to_owned(), command.to_owned(), interactive);
            assert_eq!(meaning(typed), expected, "{typed}");
        }
    }

    #[test]
    fn without_an_image_nothing_can_be_run() {
        let line = Line::try_parse_from(["run", "-t"]).unwrap();
        assert!(line.words.told_apart(false).is_err());
        assert!(Line::try_parse_from(["run", "--cmds", "ls"]).is_err());
    }
}
