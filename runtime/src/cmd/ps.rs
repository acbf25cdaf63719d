//! `ps`: the processes of a container.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Request;
use crate::container::Container;
use crate::failure::During;

/// Runs the command.
pub(super) fn ps(request: &Request<'_>) -> Result<u8> {
    let container = Container::load(&request.store, request.parsed.id())?;
    let pids: Vec<i32> = container
        .cgroup
        .pids()?
        .iter()
        .map(|pid| pid.as_raw_nonzero().get())
        .collect();
    match request.parsed.value("format") {
        Some("json") => super::print(&(serde_json::to_string(&pids)? + "\n")),
        None | Some("table" | "") => {
            let options = &request.parsed.arguments[1..];
            let options = if options.is_empty() {
                vec!["-ef".to_owned()]
            } else {
                options.to_vec()
            };
            let output = Command::new("ps")
                .args(&options)
                .output()
                .during("exec", "ps")?;
            if !output.status.success() {
                bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim_end());
            }
            super::print(&filter(&String::from_utf8_lossy(&output.stdout), &pids)?)
        }
        Some(_) => bail!("invalid format option"),
    }
}

/// The title and the lines of these processes out of what ps(1) shows.
fn filter(table: &str, pids: &[i32]) -> Result<String> {
    let title = table.lines().next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .context("couldn't find PID field in ps output")?;
    let mut text = format!("{title}\n");
    for line in table.lines().skip(1) {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_the_container() {
        let table = "UID PID PPID CMD\nroot 1 0 init\nroot 12 1 sh\n";
        assert_eq!(
            filter(table, &[12]).unwrap(),
            "UID PID PPID CMD\nroot 12 1 sh\n"
        );
        assert!(filter("UID CMD\n", &[]).is_err());
    }
}
