//! Running a program to its end, in bounded time, with everything it said kept.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest run of one command.
fn limit() -> Duration {
    crate::wait::patience() * 2
}

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command as one would type it.
    pub line: String,
    /// The exit code, 128 + the signal when one ended it, as a shell counts.
    pub code: i32,
    /// Everything written to stdout.
    pub stdout: String,
    /// Everything written to stderr.
    pub stderr: String,
    /// What to print beside the streams when an expectation fails.
    pub state: String,
}

impl Outcome {
    /// Fails unless the command succeeded; gives its stdout without the last line end.
    #[track_caller]
    pub fn ok(&self) -> &str {
        self.code(0).stdout.trim_end_matches('\n')
    }

    /// Fails unless the exit code is `code`.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        assert!(
            self.code == code,
            "expected exit code {code}{}",
            self.report()
        );
        self
    }

    /// Fails unless stdout contains `text`.
    #[track_caller]
    pub fn out(&self, text: &str) -> &Self {
        assert!(
            self.stdout.contains(text),
            "expected {text:?} on stdout{}",
            self.report()
        );
        self
    }

    /// Fails if stdout contains `text`.
    #[track_caller]
    pub fn no_out(&self, text: &str) -> &Self {
        if self.stdout.contains(text) {
            panic!("{text:?} on stdout{}", self.report());
        }
        self
    }

    /// Fails unless stderr contains `text`.
    #[track_caller]
    pub fn err(&self, text: &str) -> &Self {
        assert!(
            self.stderr.contains(text),
            "expected {text:?} on stderr{}",
            self.report()
        );
        self
    }

    /// Fails unless the command ended with `code`, nothing on stdout, and one line on stderr that
    /// begins with the program's name, or is an error of `qrun`'s log, and contains `text`. A `hint:`
    /// may follow it, and warnings and the usual lines of a pull may come before.
    #[track_caller]
    pub fn refused(&self, code: i32, text: &str) -> &Self {
        assert!(
            self.stdout.is_empty(),
            "expected nothing on stdout{}",
            self.report()
        );
        self.refused_after_id(code, text)
    }

    /// As [`Outcome::refused`], for a command that may have printed a container's id before.
    #[track_caller]
    pub fn refused_after_id(&self, code: i32, text: &str) -> &Self {
        self.code(code).err(text);
        let beside = |line: &&str| {
            line.starts_with("hint:")
                || line.starts_with("Unable to find image")
                || line.contains(": Pulling from ")
                || line.contains(" level=warning ")
                // The short digest of a layer.
                || line.find(": ") == Some(12)
        };
        let lines: Vec<_> = self.stderr.lines().filter(|line| !beside(line)).collect();
        let program = self.line.split(' ').next().unwrap_or_default();
        let program = Path::new(program)
            .file_name()
            .and_then(OsStr::to_str)
            .unwrap_or(program);
        let name = format!("{program}: ");
        let told = |line: &str| line.starts_with(&name) || line.contains(" level=error ");
        assert!(
            lines.len() == 1 && told(lines[0]),
            "expected one line on stderr that is an error of {program:?}{}",
            self.report()
        );
        assert!(
            !self.stderr.contains("panicked"),
            "expected no panic{}",
            self.report()
        );
        self
    }

    /// The command, its exit code, both streams and the state around it.
    #[must_use]
    pub fn report(&self) -> String {
        let Self {
            line,
            code,
            stdout,
            stderr,
            state,
        } = self;
        let mut text = format!("\n--- command\n{line}\n--- exit code {code}\n");
        for (name, stream) in [("stdout", stdout), ("stderr", stderr), ("state", state)] {
            if !stream.is_empty() {
                let _ = writeln!(text, "--- {name}\n{}", stream.trim_end());
            }
        }
        text
    }
}

/// Runs `command` with `input` on its stdin and waits for its end.
///
/// # Panics
/// When it cannot be started, or does not end in two minutes (it is killed then).
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Outcome {
    let line = typed(command);
    command.stdin(if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    let mut child = match command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => panic!("start {line}: {error}"),
    };
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_owned();
        // A program that ends without reading its input is no failure of the fixture.
        std::thread::spawn(move || stdin.write_all(&input));
    }
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, limit());
    let outcome = Outcome {
        line,
        code: status.unwrap_or(-1),
        stdout: collect(stdout),
        stderr: collect(stderr),
        state: String::new(),
    };
    assert!(
        status.is_some(),
        "the command did not end in {:?}{}",
        limit(),
        outcome.report()
    );
    outcome
}

/// Runs `command` without input and waits for its end.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    run_with_input(command, b"")
}

/// Runs a program of the machine that must succeed, and gives its stdout.
#[track_caller]
pub fn tool<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    run(Command::new(program).args(args)).ok().to_owned()
}

/// Runs one line of words as a program of the machine that must succeed, and gives its stdout.
#[track_caller]
pub fn shell(line: &str) -> String {
    let words = crate::words::split(line);
    tool(&words[0], &words[1..])
}

/// The command as one would type it.
#[must_use]
pub fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<_> = words
        .map(|word| {
            let word = word.to_string_lossy();
            let plain = !word.is_empty() && !word.contains([' ', '\'', '"', '\n', ';', '|', '$']);
            if plain {
                word.into_owned()
            } else {
                format!("'{word}'")
            }
        })
        .collect();
    quoted.join(" ")
}

/// The exit code of `child`, or `None` after killing it because `limit` has passed.
pub fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while start.elapsed() < limit {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(
                status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            );
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// The reader of one stream. It ends at end of file, which may come later than the end of the
/// command when something it left behind holds the stream open.
type Stream = (JoinHandle<()>, std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

fn drain(stream: Option<impl Read + Send + 'static>) -> Option<Stream> {
    let mut stream = stream?;
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let shared = kept.clone();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if let Ok(mut kept) = shared.lock() {
                kept.extend_from_slice(&buffer[..count]);
            }
        }
    });
    Some((thread, kept))
}

fn collect(stream: Option<Stream>) -> String {
    let Some((thread, kept)) = stream else {
        return String::new();
    };
    let ended = crate::wait::within(Duration::from_secs(5), || {
        thread.is_finished().then_some(())
    });
    let mut text = match kept.lock() {
        Ok(kept) => String::from_utf8_lossy(&kept).into_owned(),
        Err(_) => String::new(),
    };
    if ended.is_none() {
        text.push_str("\n[the stream was still held open 5 s after the command ended]");
    }
    text
}
