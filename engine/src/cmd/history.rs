//! `history`: the steps that made an image.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use qengine::image::{Step, history, require};
use qengine::store::Store;
use serde_json::json;

use crate::output::{Format, Listing, Row, moment, say, shorten, span};

use super::images::human_size;

/// Show the steps that made an image, the newest first
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Print commands and ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print sizes and dates for people; false for bytes and RFC 3339
    #[arg(short = 'H', long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// table, json, a template such as '{{.CreatedBy}}', or `table TEMPLATE`
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
    /// Name, id or id prefix
    image: String,
}

const HEADINGS: [(&str, &str); 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

impl History {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let format = Format::parse(&self.format)?;
        let image = require(store, &self.image)?;
        let steps = history(store, &image);
        if self.quiet {
            for step in &steps {
                say(format_args!("{}", self.id(step)))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Row> = steps.iter().map(|step| self.row(step)).collect();
        let created = if self.human {
            "CreatedSince"
        } else {
            "CreatedAt"
        };
        Listing {
            headings: &HEADINGS,
            columns: &["ID", created, "CreatedBy", "Size", "Comment"],
        }
        .print(&format, &rows)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Only the last step has come to an image that there is.
    fn id(&self, step: &Step) -> String {
        match &step.image {
            Some(id) if self.no_trunc => id.to_string(),
            Some(id) => id.short().to_owned(),
            None => "<missing>".to_owned(),
        }
    }

    fn row(&self, step: &Step) -> Row {
        let by = step.created_by.split_whitespace().collect::<Vec<_>>();
        let by = by.join(" ");
        let at = |time: Timestamp| match self.human {
            true => moment(time),
            false => time.to_string(),
        };
        let since = |time| format!("{} ago", span(time, Timestamp::now()));
        Row::new(json!({
            "ID": self.id(step),
            "CreatedSince": step.created.map_or_else(|| "N/A".to_owned(), since),
            "CreatedAt": step.created.map_or_else(String::new, at),
            "CreatedBy": if self.no_trunc { by } else { shorten(&by, 45) },
            "Size": if self.human { human_size(step.size) } else { step.size.to_string() },
            "Comment": step.comment,
        }))
    }
}
