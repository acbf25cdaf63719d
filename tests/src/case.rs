//! Tables of tests, one case a line: what is given, the command as typed, and what must hold.
//!
//! ```text
//! run -d --name bird busybox top | ps | out bird; out busybox
//! ```
//!
//! Three parts with ` | ` between them. *Given* is a list of `qengine` command lines, each of which
//! must succeed. *Command* is run to its end; with a terminal when it asks for one (`-it`, `-ti`).
//! *What must hold* is a list of the steps below, in order. Lists are separated by `;`.
//!
//! | step | meaning |
//! | --- | --- |
//! | `exit N` | the command's exit code, which has to be 0 where nothing is said |
//! | `out TEXT`, `err TEXT`, `no TEXT` | on stdout, on stderr, on neither |
//! | `id` | stdout is a container's full id |
//! | `see TEXT`, `type TEXT`, `press KEYS` | on the terminal; `type` ends with Enter |
//! | `then LINE` | `qengine LINE` succeeds; `=> TEXT` after it: and says TEXT |
//! | `never LINE` | `qengine LINE` fails; `=> TEXT` after it: and says TEXT |
//! | `soon LINE => TEXT` | says TEXT in the end |
//! | `is NAME POINTER VALUE` | the value at a JSON pointer of `inspect NAME` |
//! | `page ADDRESS:PORT` | nginx's page; the address `own` is the host's, `neighbour` asks from another machine |
//! | `file PATH TEXT` | a file of the host contains TEXT |
//! | `sh COMMAND => TEXT` | a shell command of the host says TEXT in the end |
//!
//! Images named `base`, `busybox`, `debian:nginx`, `nginx:v1` and `stress:1` are there when a line
//! mentions them; so are 192.168.231.2, a machine beyond the host, and the files
//! `~/busybox.tar`, `~/dockerfile` and `~/resolv.conf`. `localhost:5000` is a registry, which stands
//! for Docker Hub where a line mentions `ubuntu:20.04`, and `~` is a directory of the test.

use std::process::Command;

use serde_json::Value;

use crate::command::{Outcome, run};
use crate::engine::Engine;
use crate::http;
use crate::needs::{Body, Need, Test};
use crate::netns::Neighbour;
use crate::pty::Pty;
use crate::wait::until;
use crate::words;

/// One line of a table.
#[derive(Debug, Clone)]
pub struct Case {
    /// File and line.
    place: String,
    given: Vec<String>,
    command: String,
    holds: Vec<String>,
}

/// Reads a table; `module` begins the names of its tests.
///
/// # Panics
/// On a line that does not have three parts.
#[must_use]
pub fn table(module: &str, text: &str) -> Vec<Test> {
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#')
    });
    lines
        .map(|(index, line)| Case::parse(&format!("{module}:{}", index + 1), line).test())
        .collect()
}

impl Case {
    fn parse(place: &str, line: &str) -> Self {
        let parts = words::split_outside_quotes(line, " | ");
        let [given, command, holds] = &parts[..] else {
            panic!("{place}: expected three parts in: {line}");
        };
        let list = |text: &str| -> Vec<String> {
            let steps = words::split_outside_quotes(text, ";");
            steps
                .into_iter()
                .filter(|step| !step.is_empty() && step != "-")
                .collect()
        };
        Self {
            place: place.to_owned(),
            given: list(given),
            command: command.clone(),
            holds: list(holds),
        }
    }

    fn test(self) -> Test {
        let needs: &[Need] = if self.needs_registry() {
            crate::registry::NEEDS
        } else {
            &[Need::Root]
        };
        Test {
            name: format!("{} {}", self.place, self.command),
            needs,
            body: Body::Case(self),
        }
    }

    fn lines(&self) -> impl Iterator<Item = &String> {
        self.given.iter().chain([&self.command]).chain(&self.holds)
    }

    fn mentions(&self, text: &str) -> bool {
        self.lines()
            .any(|line| words::split(line).iter().any(|word| word == text))
    }

    fn needs_registry(&self) -> bool {
        self.has_any(&["localhost:5000", "nginx", "ubuntu:20.04", "stress:1"])
    }

    fn has_any(&self, texts: &[&str]) -> bool {
        self.lines()
            .any(|line| texts.iter().any(|text| line.contains(text)))
    }

    /// Runs the case.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn run(&self) {
        let engine = Engine::new();
        let neighbour = (self.has_any(&[Neighbour::ADDRESS])
            || self.holds.iter().any(|step| step.starts_with("page")))
        .then(Neighbour::new);
        self.prepare(&engine);
        for line in &self.given {
            engine.ok(line);
        }
        let typed = words::split(&self.command);
        let interactive = typed
            .iter()
            .any(|it| matches!(it.trim_start_matches('-'), "it" | "ti") && it.starts_with('-'));
        let mut stage = Stage {
            engine: &engine,
            neighbour: neighbour.as_ref(),
            terminal: None,
            outcome: None,
        };
        if interactive {
            stage.terminal = Some(Pty::start(&engine.command(&self.command)));
        } else {
            stage.outcome = Some(engine.run(&self.command));
        }
        if !self.holds.iter().any(|step| step.starts_with("exit")) && !interactive {
            stage.check("exit 0");
        }
        for step in &self.holds {
            stage.check(step);
        }
        if !self.holds.iter().any(|step| step.starts_with("exit")) && interactive {
            stage.check("exit 0");
        }
        drop(stage);
        drop(neighbour);
    }

    /// Brings in what the lines mention.
    fn prepare(&self, engine: &Engine) {
        if self.has_any(&["localhost:5000"]) {
            engine.registry_on(5000);
        }
        if self.has_any(&["ubuntu:20.04"]) {
            engine.stand_in_for_docker_hub();
        }
        self.write_files(engine);
        let makes_base = self.has_any(&["buildBase", "build-base"]);
        if (self.mentions("base") || self.mentions("busybox") || self.mentions("~/dockerfile"))
            && !makes_base
        {
            engine.ok("image build-base");
        }
        if self.mentions("busybox") && !makes_base {
            engine.ok("tag base busybox");
        }
        for name in ["nginx:v1", "debian:nginx"] {
            // Not where the line itself makes the image.
            if self.mentions(name) && !self.command.contains("commit") {
                engine.pull_as("debian:nginx", name);
            }
        }
        if self.mentions("stress:1") {
            engine.pull_as("debian:nginx", "stress:1");
        }
    }

    /// The files that lines may mention.
    fn write_files(&self, engine: &Engine) {
        let write = |name: &str, content: &[u8]| {
            let path = engine.directory().join(name);
            if self.has_any(&[&format!("~/{name}")])
                && let Err(error) = std::fs::write(&path, content)
            {
                panic!("write {}: {error}", path.display());
            }
        };
        let mut busybox = Vec::new();
        if self.has_any(&["~/busybox.tar"])
            && let Err(error) = crate::image::busybox_tar(&mut busybox)
        {
            panic!("make a tar of busybox: {error:#}");
        }
        write("busybox.tar", &busybox);
        write("resolv.conf", b"nameserver 192.0.2.53\n");
        let steps = [
            "FROM base",
            "RUN touch x.txt",
            "RUN mkdir -p /home/jdy",
            "WORKDIR /home/jdy",
            "ENTRYPOINT sleep 99999",
        ];
        write("dockerfile", (steps.join("\n") + "\n").as_bytes());
    }
}

/// A case in the middle of its run.
struct Stage<'a> {
    engine: &'a Engine,
    neighbour: Option<&'a Neighbour>,
    /// The command's terminal, when it has one.
    terminal: Option<Pty>,
    /// What the command left, when it has none.
    outcome: Option<Outcome>,
}

impl Stage<'_> {
    #[track_caller]
    fn check(&mut self, step: &str) {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        match verb {
            "then" | "never" | "soon" => return self.ask(verb, rest),
            "is" => return self.inspect(rest),
            "page" => return self.page(rest),
            "sh" => return self.shell(rest),
            "file" => {
                let (path, text) = rest.split_once(' ').unwrap_or((rest, ""));
                let path = path.replace('~', &self.engine.directory().display().to_string());
                let content = std::fs::read_to_string(&path)
                    .unwrap_or_else(|error| panic!("read {path}: {error}"));
                assert!(
                    content.contains(text),
                    "expected {text:?} in {path}: {content:?}"
                );
                return;
            }
            _ => {}
        }
        match (&mut self.terminal, &self.outcome) {
            (Some(terminal), _) => match verb {
                "see" => terminal.expect(rest),
                "type" => terminal.send(&format!("{rest}\n")),
                "press" => terminal.send(
                    &rest
                        .replace("^P", "\x10")
                        .replace("^Q", "\x11")
                        .replace("^C", "\x03")
                        .replace("^D", "\x04"),
                ),
                "exit" => assert_eq!(
                    terminal.exit(),
                    rest.parse().unwrap_or(-1),
                    "exit code; the terminal said {}",
                    terminal.heard()
                ),
                _ => panic!("no such step on a terminal: {step}"),
            },
            (None, Some(outcome)) => check_outcome(outcome, verb, rest, step),
            (None, None) => panic!("nothing was run"),
        }
    }

    /// Runs another line: `LINE`, or `LINE => TEXT`.
    #[track_caller]
    fn ask(&self, verb: &str, rest: &str) {
        let (line, text) = rest
            .split_once("=>")
            .map_or((rest, ""), |(line, text)| (line.trim(), text.trim()));
        if verb == "soon" {
            until(&format!("{line} says {text:?}"), || {
                let outcome = self.engine.run(line);
                (outcome.stdout + &outcome.stderr)
                    .contains(text)
                    .then_some(())
            });
            return;
        }
        let outcome = self.engine.run(line);
        assert!(
            (outcome.code == 0) == (verb == "then"),
            "expected it to {verb} succeed{}",
            outcome.report()
        );
        let said = outcome.stdout.clone() + &outcome.stderr;
        assert!(said.contains(text), "expected {text:?}{}", outcome.report());
    }

    /// Runs a command of the host until it says what it should: `COMMAND => TEXT`.
    #[track_caller]
    fn shell(&self, rest: &str) {
        let home = self.engine.directory().display().to_string();
        let (line, text) = rest.split_once("=>").unwrap_or((rest, ""));
        let line = line.trim().replace('~', &home);
        until(&format!("{line} says {:?}", text.trim()), || {
            let outcome = run(Command::new("sh").args(["-c", &line]));
            (outcome.stdout + &outcome.stderr)
                .contains(text.trim())
                .then_some(())
        });
    }

    #[track_caller]
    fn inspect(&self, rest: &str) {
        let mut parts = rest.splitn(3, ' ');
        let [name, pointer, value] = [(); 3].map(|()| parts.next().unwrap_or_default());
        let found = self.engine.look(name, pointer);
        // A text of digits may stand for itself.
        let same =
            found == value || serde_json::from_str::<Value>(value).is_ok_and(|it| it == found);
        assert!(
            same,
            "expected {value} as {pointer} of inspect {name}, not {found}"
        );
    }

    #[track_caller]
    fn page(&self, rest: &str) {
        let (address, port) = rest.split_once(':').unwrap_or((rest, "80"));
        let port = port.parse().unwrap_or(80);
        let shown = || {
            match (address, self.neighbour) {
                ("own", _) => http::is_nginx(Neighbour::HOST, port),
                ("neighbour", Some(neighbour)) => {
                    neighbour.visit(|| http::is_nginx(Neighbour::HOST, port))
                }
                (address, _) => http::is_nginx(address, port),
            }
            .then_some(())
        };
        until(&format!("nginx answers on {rest}"), shown);
    }
}

#[track_caller]
fn check_outcome(outcome: &Outcome, verb: &str, rest: &str, step: &str) {
    match verb {
        "exit" => drop(outcome.code(rest.parse().unwrap_or(-1))),
        "out" => drop(outcome.out(rest)),
        "err" => drop(outcome.err(rest)),
        "no" => {
            let said = outcome.stdout.clone() + &outcome.stderr;
            assert!(
                !said.contains(rest),
                "expected no {rest:?}{}",
                outcome.report()
            );
        }
        "id" => {
            let id = outcome.stdout.trim_end();
            let full = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(full, "expected a full id on stdout{}", outcome.report());
        }
        _ => panic!("no such step: {step}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_three_parts() {
        let case = Case::parse("a:1", "run a; run b | ps -a | out a; then ps => 'x; y'");
        assert_eq!(case.given, ["run a", "run b"]);
        assert_eq!(case.command, "ps -a");
        assert_eq!(case.holds, ["out a", "then ps => 'x; y'"]);
        assert!(Case::parse("a:2", "- | images | -").given.is_empty());
    }
}
