//! `top`: the processes of a container.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::find::Handle;
use qengine::container::top::{Listing, top};

use super::Context;
use crate::output::say;

/// Show the processes of a container
#[derive(Debug, Args)]
#[command(after_help = "\
Example, with options for the host's ps:
  qengine top web -o pid,rss,args")]
pub(crate) struct Top {
    /// Name or id
    container: String,
    /// Options for the host's ps instead of -ef
    #[arg(
        value_name = "PS OPTION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    options: Vec<String>,
}

impl Top {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let handle = Handle::find(&context.store, &self.container)?;
        let listing = top(&context.store, &handle, &self.options)?;
        say(format_args!("{}", text(&listing).trim_end()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Docker's layout: columns of twenty characters at least, three blanks between.
fn text(listing: &Listing) -> String {
    let rows: Vec<&Vec<String>> = std::iter::once(&listing.titles)
        .chain(&listing.rows)
        .collect();
    let width = |column: usize| {
        let widest = rows
            .iter()
            .filter_map(|row| Some(row.get(column)?.chars().count()))
            .max();
        (widest.unwrap_or(0) + 3).max(20)
    };
    let widths: Vec<usize> = (0..listing.titles.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let last = row.len().saturating_sub(1);
        for (cell, width) in row.iter().zip(&widths).take(last) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(row.last().map_or("", String::as_str));
        text.push('\n');
    }
    text
}
