//! `list`: all containers below the root.

use anyhow::{Result, bail};

use super::Request;
use super::state::Summary;
use crate::container::Container;
use crate::failure::During;
use crate::state;

/// Runs the command.
pub(super) fn list(request: &Request<'_>) -> Result<u8> {
    if request.global.root_is_given {
        // Only the default root may be missing: nothing has been created yet then.
        let root = &request.global.root;
        std::fs::metadata(root).during("open", root)?;
    }
    let mut found = Vec::new();
    for id in request.store.ids()? {
        match Container::load(&request.store, &id) {
            Ok(container) => {
                let owner = owner_name(container.record.owner);
                found.push(Summary {
                    owner,
                    ..Summary::new(container)
                });
            }
            // Being created, or deleted since.
            Err(state::Error::NotExist) => {}
            Err(error) => log::warn!("load container {id}: {}", crate::failure::chain(&error)),
        }
    }
    if request.parsed.is_on("quiet") {
        return super::print(
            &found
                .iter()
                .map(|summary| format!("{}\n", summary.id))
                .collect::<String>(),
        );
    }
    match request.parsed.value("format") {
        None | Some("table" | "") => super::print(&table(&found)),
        // As Go's encoder has it, where an empty list is null.
        Some("json") if found.is_empty() => super::print("null\n"),
        Some("json") => super::print(&(serde_json::to_string(&found)? + "\n")),
        Some(_) => bail!("invalid format option"),
    }
}

/// The table, columns at least twelve wide and three apart.
fn table(found: &[Summary]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(found.iter().map(|row| {
        let pid = row.pid.to_string();
        [
            row.id.clone(),
            pid,
            row.status.to_owned(),
            row.bundle.clone(),
            row.created.clone(),
            row.owner.clone(),
        ]
    }));
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count() + 3).max(12);
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

/// A user's name according to the host's `/etc/passwd`, or `#` and the number.
fn owner_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let number = uid.to_string();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |id: &str| Summary {
            oci_version: "1.0.2".into(),
            id: id.into(),
            pid: 7,
            status: "running",
            bundle: "/a/long/way/to/the/bundle".into(),
            rootfs: "/r".into(),
            created: "2026-01-01T00:00:00Z".into(),
            annotations: Default::default(),
            owner: "root".into(),
        };
        let text = table(&[row("a"), row("a-rather-long-id")]);
        let starts: Vec<_> = text
            .lines()
            .map(|line| line.find("/a/long").or(line.find("BUNDLE")))
            .collect();
        assert!(starts.iter().all(|start| *start == starts[0]), "{text}");
        assert!(
            text.starts_with("ID                 PID         STATUS      BUNDLE "),
            "{text}"
        );
    }
}
