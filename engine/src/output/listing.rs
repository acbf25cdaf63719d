//! `--format` of the listing commands: a table, one JSON object a line, or a template of the user's.
//!
//! A command describes its columns once ([`Listing`]) and hands over rows of named texts ([`Row`]); which of them are
//! printed, and how, is decided here.

use std::io::Write as _;

use serde_json::{Map, Value};

use super::align;
use crate::template::{Error, Template};

/// What `--format` asks for.
#[derive(Debug)]
pub(crate) enum Format {
    /// The command's own table.
    Table,
    /// One JSON object a line.
    Json,
    /// The user's template.
    Template {
        /// What each row goes through.
        template: Template,
        /// Whether headings stand above, and columns line up.
        table: bool,
        /// As typed.
        text: String,
    },
}

impl Format {
    /// Understands `table`, `json`, a template, and `table TEMPLATE`. Nothing at all is `table`.
    ///
    /// # Errors
    /// When the template is none.
    pub(crate) fn parse(text: &str) -> Result<Format, Error> {
        let trimmed = text.trim();
        let (table, template) = match trimmed.strip_prefix("table") {
            Some(rest) => (true, rest.trim_start()),
            None => (false, trimmed),
        };
        if template.is_empty() {
            return Ok(Format::Table);
        }
        if !table && template == "json" {
            return Ok(Format::Json);
        }
        Ok(Format::Template {
            template: Template::parse_escaped(template)?,
            table,
            text: template.to_owned(),
        })
    }

    /// Whether the template asks for this field: for what is costly to find out.
    pub(crate) fn mentions(&self, field: &str) -> bool {
        match self {
            Format::Template { text, .. } => text.contains(&format!(".{field}")),
            Format::Table | Format::Json => false,
        }
    }

    /// Whether it is a table, the usual one or the user's.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self, Format::Table | Format::Template { table: true, .. })
    }
}

/// One row: texts by field name.
#[derive(Debug)]
pub(crate) struct Row {
    fields: Value,
    labels: Map<String, Value>,
}

impl Row {
    /// A row of an object's fields.
    pub(crate) fn new(fields: Value) -> Row {
        Row {
            fields,
            labels: Map::new(),
        }
    }

    /// Adds what `.Labels` and `.Label "key"` answer.
    pub(crate) fn with_labels<'a>(
        mut self,
        labels: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Row {
        self.labels = labels
            .into_iter()
            .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
            .collect();
        let pairs: Vec<String> = self
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        self.fields["Labels"] = pairs.join(",").into();
        self
    }

    fn cell(&self, field: &str) -> String {
        match &self.fields[field] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        }
    }
}

/// What the fields of a command's rows are called above a table, and which of them are its own table.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    /// Field and heading.
    pub(crate) headings: &'a [(&'a str, &'a str)],
    /// Fields of the table that is printed when nothing else is asked for.
    pub(crate) columns: &'a [&'a str],
}

impl Listing<'_> {
    /// Prints the rows.
    ///
    /// # Errors
    /// When the template asks for what is not there, or nobody reads.
    pub(crate) fn print(&self, format: &Format, rows: &[Row]) -> anyhow::Result<()> {
        let text = self.text(format, rows)?;
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }

    /// What [`Listing::print`] prints.
    ///
    /// # Errors
    /// When the template asks for what is not there.
    pub(crate) fn text(&self, format: &Format, rows: &[Row]) -> Result<String, Error> {
        let mut lines = Vec::new();
        match format {
            Format::Json => {
                for row in rows {
                    lines.push(vec![row.fields.to_string()]);
                }
            }
            Format::Table => {
                let heading = |field: &&str| {
                    let found = self.headings.iter().find(|(known, _)| known == field);
                    found.map_or_else(
                        || field.to_uppercase(),
                        |(_, heading)| (*heading).to_owned(),
                    )
                };
                lines.push(self.columns.iter().map(heading).collect());
                for row in rows {
                    lines.push(self.columns.iter().map(|field| row.cell(field)).collect());
                }
            }
            Format::Template {
                template, table, ..
            } => {
                if *table {
                    let headings = self
                        .headings
                        .iter()
                        .map(|(field, heading)| ((*field).to_owned(), Value::from(*heading)))
                        .collect();
                    lines.push(cells(&template.render_heading(&headings)?));
                }
                for row in rows {
                    let text = template.render_row(&row.fields, &row.labels)?;
                    lines.push(if *table { cells(&text) } else { vec![text] });
                }
            }
        }
        Ok(align(&lines))
    }
}

fn cells(line: &str) -> Vec<String> {
    line.split('\t').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_format() {
        let listing = Listing {
            headings: &[("ID", "CONTAINER ID"), ("Names", "NAMES")],
            columns: &["Names", "ID"],
        };
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let rows = [
            Row::new(json!({"ID": "0123", "Names": "web"})).with_labels(&labels),
            Row::new(json!({"ID": "4", "Names": "database"})),
        ];
        for (format, text) in [
            (
                "",
                "NAMES      CONTAINER ID\nweb        0123\ndatabase   4\n",
            ),
            (
                "table",
                "NAMES      CONTAINER ID\nweb        0123\ndatabase   4\n",
            ),
            (
                "table {{.ID}}\\t{{upper .Names}}",
                "CONTAINER ID   NAMES\n0123           WEB\n4              DATABASE\n",
            ),
            ("{{.ID}}: {{.Names}}\\t", "0123: web\t\n4: database\t\n"),
            ("{{.Label \"a\"}}", "1\n\n"),
            (
                "json",
                "{\"ID\":\"0123\",\"Labels\":\"a=1\",\"Names\":\"web\"}\n{\"ID\":\"4\",\"Names\":\"database\"}\n",
            ),
        ] {
            let format = Format::parse(format).unwrap();
            assert_eq!(listing.text(&format, &rows).unwrap(), text);
        }
        assert!(Format::parse("{{.ID").is_err());
        let format = Format::parse("{{.Nosuch}}").unwrap();
        assert!(listing.text(&format, &rows).is_err());
    }
}
