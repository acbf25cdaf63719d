//! A template's text as pieces: literal text, and actions as tokens.

use serde_json::{Number, Value};

use super::Error;

/// Text to print, or the tokens of one action.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Action { line: usize, tokens: Vec<Token> },
}

/// One word of an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Dot,
    /// `.Name`; `attached` when nothing stands between it and the operand before.
    Field {
        name: String,
        attached: bool,
    },
    /// `$name`, without the dollar; empty for `$` itself.
    Variable(String),
    Word(String),
    Literal(Value),
    Open,
    Close,
    Pipe,
    Comma,
    Declare,
    Assign,
}

/// Cuts a template in pieces. White space beside `{{-` and `-}}` is dropped, and so are comments.
pub(super) fn lex(text: &str) -> Result<Vec<Piece>, Error> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_start = false;
    loop {
        let start = rest.find("{{");
        let mut literal = start.map_or(rest, |start| &rest[..start]);
        let inside = start.map(|start| &rest[start + 2..]);
        if trim_start {
            literal = literal.trim_start();
        }
        let trims_before =
            inside.is_some_and(|inside| inside.starts_with('-') && is_blank_at(inside, 1));
        if trims_before {
            literal = literal.trim_end();
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal.to_owned()));
        }
        let Some(inside) = inside else {
            return Ok(pieces);
        };
        let inside = if trims_before { &inside[1..] } else { inside };
        let line = 1 + text[..text.len() - inside.len()].matches('\n').count();
        let mut scanner = Scanner { rest: inside, line };
        let (tokens, trims_after) = scanner.action()?;
        if let Some(tokens) = tokens {
            pieces.push(Piece::Action { line, tokens });
        }
        trim_start = trims_after;
        rest = scanner.rest;
    }
}

fn is_blank_at(text: &str, index: usize) -> bool {
    text[index..].starts_with(char::is_whitespace)
}

/// Reads one action, from behind its `{{` to behind its `}}`.
struct Scanner<'a> {
    rest: &'a str,
    line: usize,
}

impl Scanner<'_> {
    /// The tokens (none for a comment), and whether white space behind the action is dropped.
    fn action(&mut self) -> Result<(Option<Vec<Token>>, bool), Error> {
        if let Some(comment) = self.rest.trim_start().strip_prefix("/*") {
            let end = comment
                .find("*/")
                .ok_or_else(|| self.error("unclosed comment"))?;
            self.rest = &comment[end + 2..];
            let trims = self
                .end()
                .ok_or_else(|| self.error("comment ends before closing delimiter"))?;
            return Ok((None, trims));
        }
        let mut tokens = Vec::new();
        loop {
            let before = self.rest.len();
            if let Some(trims) = self.end() {
                return Ok((Some(tokens), trims));
            }
            self.rest = self.rest.trim_start();
            let attached = self.rest.len() == before;
            let token = self.token(attached && ends_operand(tokens.last()))?;
            tokens.push(token);
        }
    }

    /// Takes `}}` or ` -}}`.
    fn end(&mut self) -> Option<bool> {
        let ahead = self.rest.trim_start();
        let trims = ahead.len() < self.rest.len();
        if let Some(rest) = ahead.strip_prefix("-}}").filter(|_| trims) {
            self.rest = rest;
            return Some(true);
        }
        self.rest = ahead.strip_prefix("}}")?;
        Some(false)
    }

    fn token(&mut self, attached: bool) -> Result<Token, Error> {
        for (text, token) in [
            (":=", Token::Declare),
            ("=", Token::Assign),
            ("|", Token::Pipe),
            (",", Token::Comma),
            ("(", Token::Open),
            (")", Token::Close),
        ] {
            if let Some(rest) = self.rest.strip_prefix(text) {
                self.rest = rest;
                return Ok(token);
            }
        }
        let first = self
            .rest
            .chars()
            .next()
            .ok_or_else(|| self.error("unclosed action"))?;
        match first {
            '"' => self.quoted(),
            '`' => {
                let end = self.rest[1..]
                    .find('`')
                    .ok_or_else(|| self.error("unterminated raw quoted string"))?;
                let text = self.rest[1..=end].to_owned();
                self.rest = &self.rest[end + 2..];
                Ok(Token::Literal(Value::String(text)))
            }
            '\'' => self.character(),
            '$' => {
                self.rest = &self.rest[1..];
                Ok(Token::Variable(self.name()))
            }
            '.' if !self.rest[1..].starts_with(|next: char| next.is_ascii_digit()) => {
                self.rest = &self.rest[1..];
                let name = self.name();
                Ok(if name.is_empty() {
                    Token::Dot
                } else {
                    Token::Field { name, attached }
                })
            }
            '0'..='9' | '.' | '-' | '+' => self.number(),
            letter if letter.is_alphabetic() || letter == '_' => Ok(Token::Word(self.name())),
            other => Err(self.error(&format!("unexpected {other:?} in action"))),
        }
    }

    fn name(&mut self) -> String {
        let end = self
            .rest
            .find(|letter: char| !letter.is_alphanumeric() && letter != '_')
            .unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name.to_owned()
    }

    fn quoted(&mut self) -> Result<Token, Error> {
        let mut text = String::new();
        let mut letters = self.rest.char_indices().skip(1);
        while let Some((index, letter)) = letters.next() {
            match letter {
                '"' => {
                    self.rest = &self.rest[index + 1..];
                    return Ok(Token::Literal(Value::String(text)));
                }
                '\n' => break,
                '\\' => {
                    let escaped = letters.next().map(|(_, letter)| letter);
                    let code = match escaped {
                        Some('x') => Some(2),
                        Some('u') => Some(4),
                        _ => None,
                    };
                    if let Some(digits) = code {
                        let digits: String = letters
                            .by_ref()
                            .take(digits)
                            .map(|(_, letter)| letter)
                            .collect();
                        text.push(
                            u32::from_str_radix(&digits, 16)
                                .ok()
                                .and_then(char::from_u32)
                                .ok_or_else(|| self.error("invalid escape in string"))?,
                        );
                    } else {
                        text.push(
                            escaped
                                .and_then(unescape)
                                .ok_or_else(|| self.error("invalid escape in string"))?,
                        );
                    }
                }
                other => text.push(other),
            }
        }
        Err(self.error("unterminated quoted string"))
    }

    fn character(&mut self) -> Result<Token, Error> {
        let mut letters = self.rest[1..].chars();
        let letter = match letters.next() {
            Some('\\') => letters.next().and_then(unescape),
            letter => letter,
        };
        let closed = letters.next() == Some('\'');
        let Some(letter) = letter.filter(|_| closed) else {
            return Err(self.error("unterminated character constant"));
        };
        let used = self.rest.len() - letters.as_str().len();
        self.rest = &self.rest[used..];
        Ok(Token::Literal(Value::from(u32::from(letter))))
    }

    fn number(&mut self) -> Result<Token, Error> {
        let end = self
            .rest
            .find(|letter: char| {
                !letter.is_ascii_alphanumeric() && !matches!(letter, '.' | '-' | '+' | '_')
            })
            .unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        let digits = text.replace('_', "");
        let hexadecimal = digits
            .strip_prefix("0x")
            .and_then(|digits| i64::from_str_radix(digits, 16).ok());
        let number = hexadecimal
            .or_else(|| digits.parse().ok())
            .map(Number::from)
            .or_else(|| digits.parse().ok().and_then(Number::from_f64))
            .ok_or_else(|| self.error(&format!("bad number syntax: {text:?}")))?;
        self.rest = rest;
        Ok(Token::Literal(Value::Number(number)))
    }

    fn error(&self, message: &str) -> Error {
        Error::Parse {
            line: self.line,
            message: message.to_owned(),
        }
    }
}

fn ends_operand(token: Option<&Token>) -> bool {
    matches!(
        token,
        Some(Token::Field { .. } | Token::Variable(_) | Token::Close)
    )
}

fn unescape(letter: char) -> Option<char> {
    Some(match letter {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'v' => '\u{b}',
        '\\' | '"' | '\'' => letter,
        _ => return None,
    })
}
