//! `images` and `image ls`: the images of the store.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use qengine::image::{Filter, Listed, Reference, list};
use qengine::store::Store;
use serde_json::json;

use crate::flags::images::filter;
use crate::output::{self, Format, Listing, Row, moment, say};

/// List images.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Only images of this repository, or of this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// Only those: dangling=BOOL, reference=PATTERN, label=NAME[=VALUE], label!=…, before=IMAGE, since=IMAGE, until=TIME
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Accepted for docker's sake: there are no intermediate images to show
    #[arg(short, long)]
    all: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Print the digests that the images have in their registries
    #[arg(long)]
    digests: bool,
    /// table, json, a template such as '{{.Repository}}:{{.Tag}}', or `table TEMPLATE`
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
}

const HEADINGS: [(&str, &str); 8] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
];

struct Found {
    repository: String,
    tag: String,
    digest: String,
    id: String,
    created: Option<Timestamp>,
    size: u64,
}

impl Images {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        // Only changes what docker shows of images that we don't have.
        let _ = self.all;
        let format = Format::parse(&self.format)?;
        let filter = filter(store, &self.filter)?;
        let mut rows = Vec::new();
        for listed in list(store)? {
            if filter.fits(&listed.image) {
                rows.extend(self.rows(&listed, &filter));
            }
        }
        if self.quiet {
            let mut before = Vec::new();
            for row in rows {
                if !before.contains(&row.id) {
                    say(format_args!("{}", row.id))?;
                    before.push(row.id);
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Row> = rows.iter().map(Found::row).collect();
        let mut columns = vec!["Repository", "Tag", "ID", "CreatedSince", "Size"];
        if self.digests {
            columns.insert(2, "Digest");
        }
        Listing {
            headings: &HEADINGS,
            columns: &columns,
        }
        .print(&format, &rows)?;
        Ok(ExitCode::SUCCESS)
    }

    /// One row a name; an untagged image has one too.
    fn rows(&self, listed: &Listed, filter: &Filter) -> Vec<Found> {
        let image = &listed.image;
        let row = |name: Option<&Reference>| Found {
            repository: name.map_or_else(none, Reference::familiar_name),
            tag: name
                .and_then(Reference::tag)
                .map_or_else(none, str::to_owned),
            digest: name
                .and_then(|name| image.digest_of(name))
                .map_or_else(none, ToString::to_string),
            id: match self.no_trunc {
                true => image.id.to_string(),
                false => image.id.short().to_owned(),
            },
            created: image.created(),
            size: listed.size,
        };
        let names: Vec<Reference> = image
            .names
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        if names.is_empty() && self.name.is_none() && filter.references.is_empty() {
            return vec![row(None)];
        }
        names
            .iter()
            .filter(|name| self.wants(name) && filter.fits_name(name))
            .map(|name| row(Some(name)))
            .collect()
    }

    fn wants(&self, name: &Reference) -> bool {
        let Some(text) = &self.name else {
            return true;
        };
        if text.contains(['*', '?', '[']) {
            let pattern = Filter {
                references: vec![text.clone()],
                ..Filter::default()
            };
            return pattern.fits_name(name);
        }
        match text.parse::<Reference>() {
            Ok(wanted) if text.ends_with(&format!(":{}", wanted.tag().unwrap_or_default())) => {
                wanted == *name
            }
            Ok(wanted) => wanted.name() == name.name(),
            Err(_) => false,
        }
    }
}

impl Found {
    fn row(&self) -> Row {
        let created = self.created.map_or_else(none, moment);
        let since = self.created.map_or_else(none, |created| {
            format!("{} ago", output::span(created, Timestamp::now()))
        });
        Row::new(json!({
            "Repository": self.repository,
            "Tag": self.tag,
            "Digest": self.digest,
            "ID": self.id,
            "CreatedAt": created,
            "CreatedSince": since,
            "Size": human_size(self.size),
            "SizeBytes": self.size,
            "Containers": "N/A",
            "SharedSize": "N/A",
            "UniqueSize": "N/A",
            "VirtualSize": human_size(self.size),
        }))
    }
}

fn none() -> String {
    "<none>".to_owned()
}

/// `1.23kB`, `12.3MB`, `123GB`: three significant digits in powers of 1000, as docker prints sizes.
pub(crate) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut divisor: u64 = 1000;
    let mut unit = 0;
    while bytes / divisor >= 1000 {
        divisor *= 1000;
        unit += 1;
    }
    let (whole, rest) = (bytes / divisor, bytes % divisor);
    // Rounded down, so that 999.9 MB don't become 1e+03MB.
    let thousandths = u128::from(rest) * 1000 / u128::from(divisor);
    let fraction = match whole {
        0..10 => format!(".{:02}", thousandths / 10),
        10..100 => format!(".{}", thousandths / 100),
        _ => String::new(),
    };
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{whole}{fraction}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (72_800_000, "72.8MB"),
            (123_456_789, "123MB"),
            (999_999_999, "999MB"),
            (1_050_000_000, "1.05GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
