//! `stats`: what containers use, once or as it goes on.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use qengine::container::Live;
use qengine::container::find::{Handle, all};
use qengine::container::stats::Sample;
use serde_json::json;

use super::Context;
use crate::output::{Format, Listing, Row};

/// Between two looks: also the span over which CPU time is measured.
const PERIOD: Duration = Duration::from_secs(1);

/// Show what containers use: CPU, memory, network, block devices, processes
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Once instead of again and again
    #[arg(long)]
    no_stream: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// `table`, `json`, or a template such as '{{.Name}}: {{.CPUPerc}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: String,
    /// Names or ids; all that run when none is given
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const HEADINGS: [(&str, &str); 9] = [
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
    ("Container", "CONTAINER"),
];

const COLUMNS: [&str; 8] = [
    "ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs",
];

impl Stats {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let format = Format::parse(&self.format)?;
        let is_screen = !self.no_stream && format.is_table() && io::stdout().is_terminal();
        // A name that is not there is an error at once.
        let named = self
            .containers
            .iter()
            .map(|name| Ok((name.clone(), Handle::find(&context.store, name)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut earlier = BTreeMap::new();
        self.look(context, &named, &mut earlier)?;
        if is_screen {
            write!(io::stdout(), "\x1b[2J")?;
        }
        loop {
            std::thread::sleep(PERIOD);
            let rows = self.look(context, &named, &mut earlier)?;
            if !named.is_empty() && rows.is_empty() {
                return Ok(ExitCode::SUCCESS); // All of them were removed.
            }
            show(&rows, &format, is_screen)?;
            if self.no_stream {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }

    /// Takes a sample of each, and tells of each what it has used since the one before.
    fn look(
        &self,
        context: &Context,
        named: &[(String, Handle)],
        earlier: &mut BTreeMap<String, Sample>,
    ) -> Result<Vec<Row>> {
        let handles = if named.is_empty() {
            let found = all(&context.store)?;
            found
                .into_iter()
                .map(|handle| (handle.config.short_id().to_owned(), handle))
                .collect()
        } else {
            named.to_vec()
        };
        let mut rows = Vec::new();
        let mut samples = BTreeMap::new();
        for (typed, handle) in handles {
            if !handle.directory().exists() {
                continue;
            }
            let Ok(sample) = Sample::take(&context.store, &handle) else {
                continue; // It vanishes just now.
            };
            let is_shown = self.all || !named.is_empty() || sample.live.is_running();
            if !is_shown || sample.live == Live::Removing {
                continue;
            }
            let before = earlier.get(handle.id()).unwrap_or(&sample);
            rows.push(self.row(typed, &handle, &sample, before));
            samples.insert(handle.id().to_owned(), sample);
        }
        *earlier = samples;
        Ok(rows)
    }

    fn row(&self, typed: String, handle: &Handle, sample: &Sample, before: &Sample) -> Row {
        let pair = |one, other, size: fn(u64) -> String| format!("{} / {}", size(one), size(other));
        Row::new(json!({
            "Container": typed,
            "ID": if self.no_trunc { handle.id() } else { handle.config.short_id() },
            "Name": handle.name(),
            "CPUPerc": format!("{:.2}%", sample.cpu_percent(before)),
            "MemUsage": pair(sample.memory, sample.memory_limit, binary),
            "MemPerc": format!("{:.2}%", sample.memory_percent()),
            "NetIO": pair(sample.received, sample.sent, decimal),
            "BlockIO": pair(sample.read, sample.written, decimal),
            "PIDs": sample.pids.to_string(),
        }))
    }
}

fn show(rows: &[Row], format: &Format, is_screen: bool) -> Result<()> {
    let listing = Listing {
        headings: &HEADINGS,
        columns: &COLUMNS,
    };
    let text = listing.text(format, rows)?;
    let mut output = io::stdout().lock();
    if is_screen {
        // Each line over the old one, so that nothing flickers; then the rest of the screen is cleared.
        let lines = text.replace('\n', "\x1b[K\n");
        write!(output, "\x1b[H{lines}\x1b[J")?;
    } else {
        output.write_all(text.as_bytes())?;
    }
    output.flush()?;
    Ok(())
}

/// Powers of 1024, four digits.
fn binary(bytes: u64) -> String {
    size(
        bytes,
        1024.0,
        4,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
    )
}

/// Powers of 1000, three digits.
fn decimal(bytes: u64) -> String {
    size(bytes, 1000.0, 3, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

fn size(bytes: u64, base: f64, digits: usize, units: &[&str]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown in four digits at most")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let whole = format!("{value:.0}").len();
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (bytes, text) in [
            (0, "0B"),
            (512, "512B"),
            (1 << 20, "1MiB"),
            (1_500_000, "1.431MiB"),
            (200 << 20, "200MiB"),
            (1023 << 20, "1023MiB"),
            (3_900_000_000, "3.632GiB"),
        ] {
            assert_eq!(binary(bytes), text);
        }
        for (bytes, text) in [
            (0, "0B"),
            (1090, "1.09kB"),
            (72_800_000, "72.8MB"),
            (999, "999B"),
        ] {
            assert_eq!(decimal(bytes), text);
        }
    }
}
