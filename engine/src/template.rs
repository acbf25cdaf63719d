//! The templates that `--format` takes: the part of Go's `text/template` that docker's users type, over JSON values.
//!
//! Text goes through [`lexer`] (text, and the words between `{{` and `}}`), [`parser`] (a tree), [`evaluate`] (the tree
//! over a value) and [`functions`] (what may be called). Left out: `define`, `template`, `block` and `call`, which
//! have no use on one line. Reference: the documentation of Go's package `text/template`.
//!
//! JSON has no types, so two of Go's distinctions are made by name: below [`evaluate::OPEN`] keys are the user's own
//! and a missing one prints as `<no value>`; anywhere else a missing key is a misspelt field, and an error.

use serde_json::{Map, Value};

mod evaluate;
mod functions;
mod lexer;
mod parser;
mod printf;
#[cfg(test)]
mod tests;

/// Why a template was refused, or could not be carried out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    /// The text is no template.
    #[error("template parsing error: line {line}: {message}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The template does not go with the value.
    #[error("template parsing error: line {line}: at <{at}>: {message}")]
    Execute {
        /// Line, from 1.
        line: usize,
        /// The expression.
        at: String,
        /// What is wrong with it.
        message: String,
    },
}

/// A template, ready to be carried out any number of times.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<parser::Node>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`Error::Parse`].
    pub(crate) fn parse(text: &str) -> Result<Template, Error> {
        Template::of(lexer::lex(text)?)
    }

    /// Reads a template in which the letters `\t` and `\n` outside actions are a tab and a newline: what docker's
    /// listing commands do, and `inspect` does not.
    ///
    /// # Errors
    /// [`Error::Parse`].
    pub(crate) fn parse_escaped(text: &str) -> Result<Template, Error> {
        let mut pieces = lexer::lex(text)?;
        for piece in &mut pieces {
            if let lexer::Piece::Text(text) = piece {
                *text = text.replace("\\t", "\t").replace("\\n", "\n");
            }
        }
        Template::of(pieces)
    }

    fn of(pieces: Vec<lexer::Piece>) -> Result<Template, Error> {
        Ok(Template {
            nodes: parser::parse(pieces)?,
        })
    }

    /// The text that the template makes of `value`.
    ///
    /// # Errors
    /// [`Error::Execute`].
    pub(crate) fn render(&self, value: &Value) -> Result<String, Error> {
        evaluate::render(&self.nodes, value, evaluate::Methods::None)
    }

    /// [`Template::render`] for a row of a listing, on which `.Label "key"` may be called.
    ///
    /// # Errors
    /// [`Error::Execute`].
    pub(crate) fn render_row(
        &self,
        row: &Value,
        labels: &Map<String, Value>,
    ) -> Result<String, Error> {
        evaluate::render(&self.nodes, row, evaluate::Methods::Row(labels))
    }

    /// [`Template::render`] for the heading of a table: functions hand the headings through.
    ///
    /// # Errors
    /// [`Error::Execute`].
    pub(crate) fn render_heading(&self, headings: &Value) -> Result<String, Error> {
        evaluate::render(&self.nodes, headings, evaluate::Methods::Heading)
    }
}
