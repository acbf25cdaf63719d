//! The processes of a container, as the host sees them.
//!
//! Nothing in the container is asked: a `ps` of the image, run with the host's rights, could do anything
//! (CVE-2022-1227). The cgroup says who belongs to it, `/proc` of the host the rest.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::cgroup::Cgroup;
use super::find::Handle;
use super::live::Live;
use super::{Error, Result};
use crate::store::Store;

/// Clock ticks a second in `/proc`, the same on every architecture that Linux has today (`USER_HZ`).
const TICKS: u64 = 100;

/// Rows under headings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Headings.
    pub titles: Vec<String>,
    /// One row a process; the last cell may hold blanks.
    pub rows: Vec<Vec<String>>,
}

/// Lists the processes of a running container, in the columns of `ps -ef`; or in those of the host's `ps` with
/// `options`, of which only the container's processes are kept.
///
/// # Errors
/// When it does not run, or the host's `ps` refuses the options or can't be run.
pub fn top(store: &Store, handle: &Handle, options: &[String]) -> Result<Listing> {
    let name = handle.name();
    match handle.live(store)?.1 {
        Live::Running | Live::Paused => {}
        Live::Restarting => {
            return Err(Error::Invalid(format!(
                "container {name} is restarting, wait until the container is running"
            )));
        }
        _ => return Err(Error::Invalid(format!("container {name} is not running"))),
    }
    let pids = Cgroup::of(handle).processes();
    if options.is_empty() || options == ["-ef"] {
        return Ok(full(&pids));
    }
    with_ps(&pids, options)
}

fn full(pids: &[i32]) -> Listing {
    let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let now = Timestamp::now();
    let boot = boot_time(now);
    Listing {
        titles: titles.map(str::to_owned).to_vec(),
        // One that ends while we look is left out.
        rows: pids
            .iter()
            .filter_map(|&pid| {
                let process = Process::read(pid)?;
                Some(process.row(pid, &users, boot, now))
            })
            .collect(),
    }
}

fn boot_time(now: Timestamp) -> Timestamp {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = uptime
        .split(' ')
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(0.0);
    SignedDuration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|uptime| now.checked_sub(uptime).ok())
        .unwrap_or(now)
}

/// Fields of `/proc/PID/stat`, see proc_pid_stat(5), and what belongs to them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    uid: u32,
    name: String,
    parent: i32,
    terminal: i32,
    ticks: u64,
    start: u64,
    arguments: Vec<u8>,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let directory = format!("/proc/{pid}");
        let uid = fs::metadata(&directory).ok()?.uid();
        let stat = fs::read_to_string(format!("{directory}/stat")).ok()?;
        let arguments = fs::read(format!("{directory}/cmdline")).unwrap_or_default();
        Process::parse(uid, &stat, arguments)
    }

    fn parse(uid: u32, stat: &str, arguments: Vec<u8>) -> Option<Process> {
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        // The first of them is the third of the file.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Process {
            uid,
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            terminal: fields.get(4)?.parse().ok()?,
            ticks: number(14)? + number(15)?,
            start: number(22)?,
            arguments,
        })
    }

    fn row(&self, pid: i32, users: &str, boot: Timestamp, now: Timestamp) -> Vec<String> {
        let since_boot =
            SignedDuration::from_millis(i64::try_from(self.start * 1000 / TICKS).unwrap_or(0));
        let start = boot.checked_add(since_boot).unwrap_or(now);
        let seconds = self.ticks / TICKS;
        let age = u64::try_from(now.duration_since(start).as_secs()).unwrap_or(0);
        vec![
            user_name(users, self.uid),
            pid.to_string(),
            self.parent.to_string(),
            (100 * seconds)
                .checked_div(age)
                .unwrap_or(0)
                .min(99)
                .to_string(),
            start_time(start, now),
            terminal(self.terminal),
            format!(
                "{:02}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            ),
            self.command(),
        ]
    }

    /// The arguments; the name in brackets where there are none. What could move a terminal's cursor is shown as `?`.
    fn command(&self) -> String {
        let end = self
            .arguments
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        if end == 0 {
            return format!("[{}]", self.name);
        }
        String::from_utf8_lossy(&self.arguments[..end])
            .chars()
            .map(|character| match character {
                '\0' => ' ',
                character if character.is_control() => '?',
                character => character,
            })
            .collect()
    }
}

/// The name that the host has for the user, or the number.
fn user_name(passwd: &str, uid: u32) -> String {
    let number = uid.to_string();
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == number).then(|| name.to_owned())
        })
        .unwrap_or(number)
}

/// The hour of today, the day of this year, or the year.
fn start_time(start: Timestamp, now: Timestamp) -> String {
    let (start, now) = (
        start.to_zoned(TimeZone::system()),
        now.to_zoned(TimeZone::system()),
    );
    let format = if start.date() == now.date() {
        "%H:%M"
    } else if start.year() == now.year() {
        "%b%d"
    } else {
        "%Y"
    };
    start.strftime(format).to_string()
}

/// From a device number: majors 136 to 143 are pseudo-terminals.
fn terminal(device: i32) -> String {
    let device = device.cast_unsigned();
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => "?".to_owned(),
    }
}

/// The host's `ps` with the user's options. Without a selection among these, `ps` would show what runs on the caller's own
/// terminal: it is asked for the container's processes, and where it can't be (not procps'), for what it shows by itself.
fn with_ps(pids: &[i32], options: &[String]) -> Result<Listing> {
    let program = "ps";
    let run = |selection: &[String]| {
        Command::new(program)
            .args(options)
            .args(selection)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Error::Program {
                program: program.into(),
                source,
            })
    };
    let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let selected = run(&["-q".to_owned(), list.join(",")])?;
    let output = match selected.status.success() {
        true => selected,
        false => run(&[])?,
    };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Invalid(format!("ps: {}", text.trim())));
    }
    select(&String::from_utf8_lossy(&output.stdout), pids)
}

/// The lines of `ps` that are about one of `pids`, found by the column of that heading.
fn select(text: &str, pids: &[i32]) -> Result<Listing> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let column = titles
        .iter()
        .position(|title| title == "PID")
        .ok_or_else(|| Error::Invalid("couldn't find PID field in ps output".to_owned()))?;
    let is_ours = |cells: &Vec<String>| {
        let pid = cells.get(column).and_then(|cell| cell.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok(Listing {
        rows: lines
            .map(|line| cells(line, titles.len()))
            .filter(is_ours)
            .collect(),
        titles,
    })
}

/// At most `count` cells: the last one takes the rest of the line.
fn cells(line: &str, count: usize) -> Vec<String> {
    let mut cells = Vec::new();
    let mut rest = line.trim();
    while cells.len() + 1 < count {
        let Some((cell, tail)) = rest.split_once(char::is_whitespace) else {
            break;
        };
        cells.push(cell.to_owned());
        rest = tail.trim_start();
    }
    cells.push(rest.to_owned());
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_understood_whatever_the_name() {
        let stat = "7 (a) (b) S 3 7 7 34817 7 4194304 1 2 3 4 150 50 0 0 20 0 1 0 9000 1 1";
        let process = Process::parse(0, stat, b"sh\0-c\0x\x1b[2J\0".to_vec()).unwrap();
        assert_eq!(
            (process.parent, process.ticks, process.start),
            (3, 200, 9000)
        );
        assert_eq!(process.name, "a) (b");
        assert_eq!(process.command(), "sh -c x?[2J");
        let boot = Timestamp::UNIX_EPOCH;
        let now = boot.checked_add(SignedDuration::from_secs(100)).unwrap();
        let row = process.row(7, "root:x:0:0::/:/bin/sh\n", boot, now);
        assert_eq!(row[..4], ["root", "7", "3", "20"]);
        assert_eq!(row[5..7], ["pts/1", "00:00:02"]);
        let nameless = Process {
            arguments: vec![0, 0],
            ..process
        };
        assert_eq!(nameless.command(), "[a) (b]");
    }

    #[test]
    fn only_the_containers_lines_of_ps_are_kept() {
        let text = "  PID ARGS\n    1 /sbin/init\n   70 sleep 1000  x\n  700 sleep 1\n";
        let listing = select(text, &[70]).unwrap();
        assert_eq!(listing.titles, ["PID", "ARGS"]);
        assert_eq!(listing.rows, [["70", "sleep 1000  x"]]);
        assert!(select("USER\nroot\n", &[70]).is_err());
    }
}
