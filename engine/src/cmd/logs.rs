//! `logs`: what a container has written.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use qengine::container::find::Handle;
use qengine::container::log::{Query, Stream, details, read};

use super::Context;
use crate::flags::time;

/// Print what a container has written
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on with what it writes from now on
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines: a number, or `all`
    #[arg(long, value_name = "LINES", default_value = "all")]
    tail: String,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Put the labels and variables before each line that --log-opt labels=LIST, env=LIST, tag=TEXT name
    #[arg(long)]
    details: bool,
    /// Nothing older: a time (2026-01-31T12:00:00Z), or a span up to now (10m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Nothing newer
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Name or id
    container: String,
}

impl Logs {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let handle = Handle::find(&context.store, &self.container)?;
        let query = Query {
            tail: match self.tail.as_str() {
                "all" | "-1" => None,
                text => Some(
                    text.parse()
                        .with_context(|| format!("invalid --tail {text:?}: a number, or `all`"))?,
                ),
            },
            since: self.since.as_deref().map(time::parse).transpose()?,
            until: self.until.as_deref().map(time::parse).transpose()?,
            follow: self.follow,
        };
        let details: Vec<String> = details(&handle)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let details = details.join(",");
        // A long line of the container is several entries.
        let mut begins = [true; 2];
        let mut output = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let mut error = io::stderr().lock();
        // A followed log is shown at once, line by line; one that is only read, in large pieces.
        let at_once = self.follow;
        let mut last = Stream::Output;
        read(&context.store, &handle, &query, &mut |entry| {
            // Who reads both in one place finds them in the order they were written in.
            if entry.stream != last {
                output.flush()?;
                last = entry.stream;
            }
            let sink: &mut dyn Write = match entry.stream {
                Stream::Output => &mut output,
                Stream::Error => &mut error,
            };
            let begins = &mut begins[usize::from(entry.stream == Stream::Error)];
            if *begins && self.timestamps {
                write!(sink, "{} ", entry.time)?;
            }
            if *begins && self.details {
                write!(sink, "{details} ")?;
            }
            *begins = entry.text.ends_with(b"\n");
            sink.write_all(&entry.text)?;
            if at_once { sink.flush() } else { Ok(()) }
        })?;
        output.flush().context("cannot write")?;
        Ok(ExitCode::SUCCESS)
    }
}
