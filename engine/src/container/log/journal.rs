//! Reading a container's entries in the systemd journal, through `journalctl`: the journal's files have many forms.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Entry, Query, Stream};
use crate::container::find::Handle;
use crate::container::{Error, Result, SystemContext};
use jiff::Timestamp;

/// Hands every wanted entry to `emit`, oldest first.
pub(super) fn read(
    handle: &Handle,
    query: &Query,
    emit: &mut dyn FnMut(&Entry) -> Result<()>,
) -> Result<()> {
    let program = "journalctl";
    let failed = |source| Error::Program {
        program: program.into(),
        source,
    };
    let child = Command::new(program)
        .args(arguments(handle.id(), query))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut child = Ended(child);
    let Some(output) = child.0.stdout.take() else {
        return Ok(());
    };
    for line in BufReader::new(output).lines() {
        let line = line.system("read", "journal")?;
        if let Some(entry) = parse(&line)
            && query.wants(&entry)
        {
            emit(&entry)?;
        }
    }
    Ok(())
}

/// Follows no longer than we do.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // One that has ended by itself can't be killed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn arguments(id: &str, query: &Query) -> Vec<String> {
    let mut arguments = vec![
        "--quiet".to_owned(),
        "--all".to_owned(),
        "--output=json".to_owned(),
        format!(
            "--lines={}",
            query.tail.map_or("all".to_owned(), |tail| tail.to_string())
        ),
        format!("CONTAINER_ID_FULL={id}"),
    ];
    // The journal's seconds are enough here: what is exact is asked of each entry.
    if let Some(since) = query.since {
        arguments.push(format!("--since=@{}", since.as_second()));
    }
    if let Some(until) = query.until {
        arguments.push(format!("--until=@{}", until.as_second() + 1));
    }
    if query.follow {
        arguments.push("--follow".to_owned());
    }
    arguments
}

fn parse(line: &str) -> Option<Entry> {
    let object: Value = serde_json::from_str(line).ok()?;
    let mut text = match object.get("MESSAGE")? {
        Value::String(text) => text.clone().into_bytes(),
        // What is no UTF-8 comes as numbers.
        Value::Array(bytes) => bytes
            .iter()
            .filter_map(|byte| u8::try_from(byte.as_u64()?).ok())
            .collect(),
        _ => return None,
    };
    if object.get("CONTAINER_PARTIAL_MESSAGE").is_none() {
        text.push(b'\n');
    }
    let microseconds: i64 = object.get("__REALTIME_TIMESTAMP")?.as_str()?.parse().ok()?;
    Some(Entry {
        stream: match object.get("PRIORITY").and_then(Value::as_str) {
            Some("3") => Stream::Error,
            _ => Stream::Output,
        },
        time: Timestamp::from_microsecond(microseconds).ok()?.to_string(),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_journal_are_understood() {
        let entry = parse(
            r#"{"MESSAGE":"hello","PRIORITY":"3","__REALTIME_TIMESTAMP":"1700000000000001","X":null}"#,
        )
        .unwrap();
        assert_eq!(entry.stream, Stream::Error);
        assert_eq!(entry.text, b"hello\n");
        assert_eq!(entry.time, "2023-11-14T22:13:20.000001Z");
        let part = parse(
            r#"{"MESSAGE":[104,255],"CONTAINER_PARTIAL_MESSAGE":"true","__REALTIME_TIMESTAMP":"1"}"#,
        )
        .unwrap();
        assert_eq!(part.text, [104, 255]);
        assert_eq!(parse("-- No entries --"), None);
    }
}
