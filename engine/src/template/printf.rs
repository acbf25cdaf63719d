//! `print`, `println` and `printf`, as in Go's package `fmt`.

use serde_json::Value;

use super::evaluate::Found;
use super::functions::{plain, text};

/// Operands side by side, with a blank between two neither of which is a text.
pub(super) fn print(operands: &[Found]) -> String {
    let mut out = String::new();
    let mut before_is_text = true;
    for operand in operands {
        let is_text = matches!(operand, Some(Value::String(_)));
        if !before_is_text && !is_text {
            out.push(' ');
        }
        out.push_str(&text(operand));
        before_is_text = is_text;
    }
    out
}

/// Operands with blanks between, and a newline.
pub(super) fn println(operands: &[Found]) -> String {
    let texts: Vec<String> = operands.iter().map(text).collect();
    format!("{}\n", texts.join(" "))
}

/// Longest padding and precision that is carried out.
const WIDEST: usize = 4096;

/// What stands between `%` and the verb.
#[derive(Default)]
struct Directive {
    left: bool,
    zero: bool,
    plus: bool,
    sharp: bool,
    blank: bool,
    width: usize,
    precision: Option<usize>,
}

/// Operands in the places that the first of them, a format, has for them.
pub(super) fn printf(operands: &[Found]) -> Result<String, String> {
    let Some((Some(Value::String(format)), operands)) = operands.split_first() else {
        return Err("wrong type for printf: the format is no string".to_owned());
    };
    let mut operands = operands.iter();
    let mut out = String::new();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut directive = Directive::default();
        while let Some(flag) = letters.next_if(|letter| "-0+# ".contains(*letter)) {
            match flag {
                '-' => directive.left = true,
                '0' => directive.zero = true,
                '+' => directive.plus = true,
                '#' => directive.sharp = true,
                _ => directive.blank = true,
            }
        }
        let mut number = |letters: &mut std::iter::Peekable<std::str::Chars<'_>>| -> usize {
            if letters.next_if_eq(&'*').is_some() {
                let value = operands.next().cloned().flatten();
                let number = value.as_ref().and_then(Value::as_u64).unwrap_or(0);
                return usize::try_from(number).unwrap_or(WIDEST).min(WIDEST);
            }
            let mut number = 0;
            while let Some(digit) = letters.peek().and_then(|letter| letter.to_digit(10)) {
                letters.next();
                number = (number * 10 + digit as usize).min(WIDEST);
            }
            number
        };
        directive.width = number(&mut letters);
        if letters.next_if_eq(&'.').is_some() {
            directive.precision = Some(number(&mut letters));
        }
        match letters.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match operands.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(operand) => out.push_str(&directive.apply(verb, operand)),
            },
        }
    }
    let extra: Vec<String> = operands
        .map(|operand| format!("{}={}", type_name(operand), text(operand)))
        .collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(out)
}

impl Directive {
    fn apply(&self, verb: char, operand: &Found) -> String {
        let null = Value::Null;
        let value = operand.as_ref().unwrap_or(&null);
        let body = match (verb, value) {
            ('v' | 's', Value::String(text)) => self.cut(text),
            ('v', Value::Number(number)) if number.is_i64() => self.whole(number.as_i64()),
            ('v', _) => plain(value),
            ('s', Value::Array(_) | Value::Object(_)) => plain(value),
            ('q', Value::String(text)) => Value::String(self.cut(text)).to_string(),
            ('q', Value::Array(items)) => {
                let quoted: Vec<String> = items.iter().map(|item| self.quoted(item)).collect();
                format!("[{}]", quoted.join(" "))
            }
            ('t', Value::Bool(value)) => value.to_string(),
            ('d', Value::Number(number)) if number.is_i64() => self.whole(number.as_i64()),
            ('d', Value::Number(number)) if number.is_u64() => number.to_string(),
            ('x' | 'X' | 'o' | 'b' | 'c', Value::Number(number)) if number.is_i64() => {
                self.based(verb, number.as_i64().unwrap_or(0))
            }
            ('x' | 'X', Value::String(text)) => text
                .bytes()
                .map(|byte| match verb {
                    'x' => format!("{byte:02x}"),
                    _ => format!("{byte:02X}"),
                })
                .collect(),
            ('f' | 'F', Value::Number(number)) => {
                let number = number.as_f64().unwrap_or(0.0);
                format!("{number:.*}", self.precision.unwrap_or(6))
            }
            ('e' | 'g', Value::Number(number)) => number.to_string(),
            ('T', _) => type_name(operand).to_owned(),
            _ => format!("%!{verb}({}={})", type_name(operand), text(operand)),
        };
        self.pad(verb, body)
    }

    fn quoted(&self, value: &Value) -> String {
        match value {
            Value::String(_) => value.to_string(),
            other => plain(other),
        }
    }

    fn cut(&self, text: &str) -> String {
        match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text.to_owned(),
        }
    }

    fn whole(&self, number: Option<i64>) -> String {
        let number = number.unwrap_or(0);
        match number {
            0.. if self.plus => format!("+{number}"),
            0.. if self.blank => format!(" {number}"),
            _ => number.to_string(),
        }
    }

    fn based(&self, verb: char, number: i64) -> String {
        let sign = if number < 0 { "-" } else { "" };
        let number = number.unsigned_abs();
        let digits = match verb {
            'x' if self.sharp => format!("{number:#x}"),
            'x' => format!("{number:x}"),
            'X' if self.sharp => format!("0X{number:X}"),
            'X' => format!("{number:X}"),
            'o' => format!("{number:o}"),
            'b' => format!("{number:b}"),
            _ => u32::try_from(number)
                .ok()
                .and_then(char::from_u32)
                .unwrap_or(char::REPLACEMENT_CHARACTER)
                .to_string(),
        };
        format!("{sign}{digits}")
    }

    fn pad(&self, verb: char, body: String) -> String {
        let missing = self.width.saturating_sub(body.chars().count());
        if missing == 0 {
            return body;
        }
        if self.left {
            return format!("{body}{}", " ".repeat(missing));
        }
        if self.zero && "dfFxXob".contains(verb) {
            let (sign, digits) = match body.strip_prefix(['-', '+']) {
                Some(digits) => (&body[..1], digits),
                None => ("", body.as_str()),
            };
            return format!("{sign}{}{digits}", "0".repeat(missing));
        }
        format!("{}{body}", " ".repeat(missing))
    }
}

fn type_name(value: &Found) -> &'static str {
    match value {
        None | Some(Value::Null) => "<nil>",
        Some(Value::Bool(_)) => "bool",
        Some(Value::Number(number)) if number.is_f64() => "float64",
        Some(Value::Number(_)) => "int",
        Some(Value::String(_)) => "string",
        Some(Value::Array(_)) => "[]interface {}",
        Some(Value::Object(_)) => "map[string]interface {}",
    }
}
