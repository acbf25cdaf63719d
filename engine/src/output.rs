//! Columns, sizes and spans of time as docker prints them.

use std::fmt::{Arguments, Write as _};
use std::io::Write as _;

use jiff::Timestamp;

mod listing;

pub(crate) use listing::{Format, Listing, Row};

/// Prints one answer, and a newline, on standard output.
///
/// # Errors
/// When nobody reads it any more, which `println!` would take for a bug.
pub(crate) fn say(answer: Arguments<'_>) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{answer}")
}

/// Lines of cells, each column as wide as its widest cell, three blanks between.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut lines = vec![heading.iter().map(|&cell| cell.to_owned()).collect()];
    lines.extend_from_slice(rows);
    align(&lines)
}

/// [`table`] without a heading of its own. The last cell of a line is as long as it is.
fn align(lines: &[Vec<String>]) -> String {
    let mut widths = Vec::new();
    for line in lines {
        let padded = line.len().saturating_sub(1);
        widths.resize(padded.max(widths.len()), 0);
        for (width, cell) in widths.iter_mut().zip(&line[..padded]) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in lines {
        let (last, padded) = match line.split_last() {
            Some((last, padded)) => (last.as_str(), padded),
            None => ("", [].as_slice()),
        };
        let mut out = String::new();
        for (cell, width) in padded.iter().zip(&widths) {
            let _ = write!(out, "{cell:width$}   ");
        }
        out.push_str(last);
        // Blanks that only line up with nothing are dropped; a text of one cell stays as it is.
        let out = if line.len() > 1 { out.trim_end() } else { &out };
        let _ = writeln!(text, "{out}");
    }
    text
}

/// `2026-05-04 13:14:15 +0000 UTC`: a moment in docker's listings.
pub(crate) fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()
}

/// `3 minutes`, `About an hour`, `2 weeks`.
pub(crate) fn span(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        3600..5400 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Cuts a text to `width` characters, the last one an ellipsis.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_in_docker() {
        let start = Timestamp::UNIX_EPOCH;
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (90, "About a minute"),
            (180, "3 minutes"),
            (3700, "About an hour"),
            (7200, "2 hours"),
            (86400 * 3, "3 days"),
            (86400 * 21, "3 weeks"),
            (86400 * 90, "3 months"),
            (86400 * 800, "2 years"),
        ] {
            let now = start
                .saturating_add(jiff::SignedDuration::from_secs(seconds))
                .unwrap();
            assert_eq!(span(start, now), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let text = table(&["A", "BB"], &[vec!["xxx".into(), "y".into()]]);
        assert_eq!(text, "A     BB\nxxx   y\n");
    }
}
