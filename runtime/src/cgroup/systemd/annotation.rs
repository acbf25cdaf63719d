//! `org.systemd.property.*` annotations: further properties of a container's unit.
//!
//! Values are in GVariant's text format (docs.gtk.org, "GVariant Text Format"): `true`, `uint64 5`, `'text'`, `['a', 'b']`.
//! A name is taken only if it is one of [`ALLOWED`]: properties that act on the container's own processes. Others could
//! switch the machine off (`SuccessAction`), start or stop other units (`Wants`, `Conflicts`) or take back what the
//! container's configuration says (`DeviceAllow`, `Slice`), and engines pass annotations on that come from afar.

use std::collections::BTreeMap;

use super::properties::Property;
use super::wire::Value;
use super::{Error, Result};

const PREFIX: &str = "org.systemd.property.";
/// How deep arrays and tuples may be in each other.
const DEEPEST: usize = 8;
/// How long the description of a type may be on the bus.
const LONGEST_SIGNATURE: usize = 255;

/// What may be set, with times in their `USec` spelling: systemd.kill(5), systemd.scope(5), of systemd.unit(5) what orders and
/// describes, and systemd.resource-control(5) without devices and network filters.
const ALLOWED: &[&str] = &[
    "AddRef",
    "After",
    "AllowedCPUs",
    "AllowedMemoryNodes",
    "Before",
    "BlockIOAccounting",
    "BlockIOWeight",
    "CPUAccounting",
    "CPUQuotaPerSecUSec",
    "CPUQuotaPeriodUSec",
    "CPUShares",
    "CPUWeight",
    "CollectMode",
    "DefaultDependencies",
    "DefaultMemoryLow",
    "DefaultMemoryMin",
    "Description",
    "Documentation",
    "FinalKillSignal",
    "IOAccounting",
    "IOWeight",
    "JobRunningTimeoutUSec",
    "JobTimeoutUSec",
    "KillMode",
    "KillSignal",
    "ManagedOOMMemoryPressure",
    "ManagedOOMMemoryPressureLimit",
    "ManagedOOMPreference",
    "ManagedOOMSwap",
    "MemoryAccounting",
    "MemoryHigh",
    "MemoryLimit",
    "MemoryLow",
    "MemoryMax",
    "MemoryMin",
    "MemoryPressureThresholdUSec",
    "MemoryPressureWatch",
    "MemorySwapMax",
    "MemoryZSwapMax",
    "OOMPolicy",
    "PartOf",
    "RestartKillSignal",
    "RuntimeMaxUSec",
    "RuntimeRandomizedExtraUSec",
    "SendSIGHUP",
    "SendSIGKILL",
    "StartupAllowedCPUs",
    "StartupAllowedMemoryNodes",
    "StartupBlockIOWeight",
    "StartupCPUShares",
    "StartupCPUWeight",
    "StartupIOWeight",
    "TasksAccounting",
    "TasksMax",
    "TimeoutStopUSec",
    "WatchdogSignal",
];

/// The properties that annotations ask for.
pub(in crate::cgroup) fn properties(
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<Property>> {
    let mut out = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let value = parse(text).map_err(|problem| Error::AnnotationValue {
            annotation: format!("{key}={text}"),
            problem,
        })?;
        let (name, value) =
            in_microseconds(name, value).map_err(|problem| Error::AnnotationValue {
                annotation: format!("{key}={text}"),
                problem,
            })?;
        if !ALLOWED.contains(&name.as_str()) {
            return Err(Error::AnnotationName(key.clone()));
        }
        out.push((name, value));
    }
    Ok(out)
}

/// `TimeoutStopSec`, as unit files have it, is `TimeoutStopUSec` on the bus.
fn in_microseconds(name: &str, value: Value) -> Result<(String, Value), &'static str> {
    let stem = name.strip_suffix("Sec");
    let Some(stem) = stem.filter(|stem| stem.ends_with(|last: char| last.is_ascii_lowercase()))
    else {
        return Ok((name.to_owned(), value));
    };
    const SECOND: u64 = 1_000_000;
    let whole = match value {
        Value::Byte(value) => Some(u64::from(value)),
        Value::U16(value) => Some(u64::from(value)),
        Value::U32(value) => Some(u64::from(value)),
        Value::U64(value) => Some(value),
        Value::I16(value) => u64::try_from(value).ok(),
        Value::I32(value) => u64::try_from(value).ok(),
        Value::I64(value) => u64::try_from(value).ok(),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and a negative time was not meant"
        )]
        Value::Double(value) => {
            return Ok((format!("{stem}USec"), Value::U64((value * 1e6) as u64)));
        }
        _ => return Err("not a number"),
    };
    let time = whole
        .and_then(|seconds| seconds.checked_mul(SECOND))
        .ok_or("not a time")?;
    Ok((format!("{stem}USec"), Value::U64(time)))
}

/// Reads a value in the text format.
fn parse(text: &str) -> Result<Value, &'static str> {
    let mut parser = Parser { rest: text };
    let value = parser.value(None, 0)?;
    parser.skip_space();
    match parser.rest {
        "" => tellable(value),
        _ => Err("something follows the value"),
    }
}

/// Refuses a value whose type is too long to be told.
fn tellable(value: Value) -> Result<Value, &'static str> {
    match value.signature().len() {
        0..=LONGEST_SIGNATURE => Ok(value),
        _ => Err("a type too long to be told"),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: char) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// A word of letters, digits and what numbers consist of.
    fn word(&mut self) -> &'a str {
        let belongs =
            |character: char| character.is_ascii_alphanumeric() || "+-._".contains(character);
        let end = self
            .rest
            .find(|character| !belongs(character))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// One value, of a type if that is known.
    fn value(&mut self, kind: Option<&str>, depth: usize) -> Result<Value, &'static str> {
        if depth > DEEPEST {
            return Err("nested too deeply");
        }
        self.skip_space();
        if self.eat('@') {
            let end = self.rest.find(' ').ok_or("a type without a value")?;
            let (kind, rest) = self.rest.split_at(end);
            self.rest = rest;
            return self.value(Some(kind), depth + 1);
        }
        match self.rest.chars().next() {
            None => Err("empty"),
            Some('\'' | '"') => {
                let text = self.quoted()?;
                match kind {
                    None | Some("s") => Ok(Value::Text(text)),
                    Some("o") => Ok(Value::Path(text)),
                    Some("g") if text.len() < 256 => Ok(Value::Signature(text)),
                    Some(_) => Err("a string where another type is said"),
                }
            }
            Some('b') if self.rest.starts_with("b'") || self.rest.starts_with("b\"") => {
                self.rest = &self.rest[1..];
                let mut bytes = self.quoted()?.into_bytes();
                bytes.push(0);
                Ok(Value::Array(
                    "y".into(),
                    bytes.into_iter().map(Value::Byte).collect(),
                ))
            }
            Some('[') => self.array(kind, depth),
            Some('(') => self.tuple(depth),
            Some('<') => {
                self.eat('<');
                let value = tellable(self.value(None, depth + 1)?)?;
                match self.eat('>') {
                    true => Ok(Value::Variant(Box::new(value))),
                    false => Err("no closing >"),
                }
            }
            Some(_) => self.scalar(kind, depth),
        }
    }

    /// A string in either kind of quotation marks.
    fn quoted(&mut self) -> Result<String, &'static str> {
        let mut characters = self.rest.char_indices();
        let Some((_, quote)) = characters.next() else {
            return Err("empty");
        };
        let mut text = String::new();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, quoted @ ('\\' | '\'' | '"'))) => text.push(quoted),
                    _ => return Err("unknown escape sequence"),
                },
                '\0' => return Err("a zero in a string"),
                _ if character == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                _ => text.push(character),
            }
        }
        Err("no closing quotation mark")
    }

    fn array(&mut self, kind: Option<&str>, depth: usize) -> Result<Value, &'static str> {
        let mut element = match kind {
            None => None,
            Some(kind) => Some(
                kind.strip_prefix('a')
                    .ok_or("an array where another type is said")?
                    .to_owned(),
            ),
        };
        let mut values: Vec<Value> = Vec::new();
        self.eat('[');
        while !self.eat(']') {
            if !values.is_empty() && !self.eat(',') {
                return Err("no closing ]");
            }
            let value = self.value(element.as_deref(), depth + 1)?;
            let kind = value.signature();
            if *element.get_or_insert(kind.clone()) != kind {
                return Err("elements of different types");
            }
            values.push(value);
        }
        match element.as_deref() {
            // Only types that values can have here: what is written must be what the signature says.
            Some("") | None => Err("an empty array without a type"),
            Some(_) if !values.is_empty() => Ok(Value::Array(element.unwrap_or_default(), values)),
            Some("s" | "o" | "y" | "u" | "t" | "i" | "x" | "b" | "(ss)") => {
                Ok(Value::Array(element.unwrap_or_default(), values))
            }
            Some(_) => Err("an empty array of an unknown type"),
        }
    }

    fn tuple(&mut self, depth: usize) -> Result<Value, &'static str> {
        let mut values = Vec::new();
        self.eat('(');
        while !self.eat(')') {
            if !values.is_empty() && !self.eat(',') {
                return Err("no closing )");
            }
            if self.eat(')') {
                break;
            }
            values.push(self.value(None, depth + 1)?);
        }
        match values.is_empty() {
            true => Err("an empty tuple"),
            false => Ok(Value::Struct(values)),
        }
    }

    /// A boolean, a number, or the word for a type and a value.
    fn scalar(&mut self, kind: Option<&str>, depth: usize) -> Result<Value, &'static str> {
        let word = self.word();
        let named = match word {
            "true" | "false" if kind.is_none_or(|kind| kind == "b") => {
                return Ok(Value::Bool(word == "true"));
            }
            "boolean" => "b",
            "byte" => "y",
            "int16" => "n",
            "uint16" => "q",
            "int32" => "i",
            "uint32" => "u",
            "int64" => "x",
            "uint64" => "t",
            "double" => "d",
            "string" => "s",
            "objectpath" => "o",
            "signature" => "g",
            number => return scalar(number, kind),
        };
        self.value(Some(named), depth + 1)
    }
}

/// A number; without a type it is an `int32`, or a `double` if it looks like one.
fn scalar(word: &str, kind: Option<&str>) -> Result<Value, &'static str> {
    const BAD: &str = "not a number of its type";
    let fits = |value: Option<i128>| value.ok_or(BAD);
    let whole = || {
        let (negative, digits) = match word.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, word.strip_prefix('+').unwrap_or(word)),
        };
        let (digits, radix) = match digits
            .strip_prefix("0x")
            .or_else(|| digits.strip_prefix("0X"))
        {
            Some(digits) => (digits, 16),
            None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
            None => (digits, 10),
        };
        // At most 64 bits, so that the sign always fits.
        let value = i128::from(u64::from_str_radix(digits, radix).ok()?);
        Some(if negative { -value } else { value })
    };
    let double = || {
        word.parse::<f64>()
            .map(Value::Double)
            .map_err(|_| "neither a value nor a type")
    };
    match kind {
        None if whole().is_none() => double(),
        Some("d") => double(),
        None | Some("i") => fits(whole())?.try_into().map(Value::I32).map_err(|_| BAD),
        Some("y") => fits(whole())?.try_into().map(Value::Byte).map_err(|_| BAD),
        Some("n") => fits(whole())?.try_into().map(Value::I16).map_err(|_| BAD),
        Some("q") => fits(whole())?.try_into().map(Value::U16).map_err(|_| BAD),
        Some("u") => fits(whole())?.try_into().map(Value::U32).map_err(|_| BAD),
        Some("x") => fits(whole())?.try_into().map(Value::I64).map_err(|_| BAD),
        Some("t") => fits(whole())?.try_into().map(Value::U64).map_err(|_| BAD),
        Some(_) => Err("a number where another type is said"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let text = |text: &str| Value::text(text);
        for (given, expected) in [
            ("true", Value::Bool(true)),
            ("5", Value::I32(5)),
            ("-0x10", Value::I32(-16)),
            ("010", Value::I32(8)),
            ("1.5", Value::Double(1.5)),
            ("uint64 123456789", Value::U64(123_456_789)),
            ("@t 7", Value::U64(7)),
            (" byte 255 ", Value::Byte(255)),
            ("'inactive-or-failed'", text("inactive-or-failed")),
            (r#""it's \"so\"""#, text("it's \"so\"")),
            ("objectpath '/a'", Value::Path("/a".into())),
            (
                "['a.service', 'b.service']",
                Value::Array("s".into(), vec![text("a.service"), text("b.service")]),
            ),
            ("@as []", Value::Array("s".into(), vec![])),
            (
                "[(\"/dev/x\", uint64 1)]",
                Value::Array(
                    "(st)".into(),
                    vec![Value::Struct(vec![text("/dev/x"), Value::U64(1)])],
                ),
            ),
            ("<true>", Value::Variant(Box::new(Value::Bool(true)))),
            (
                "b'a'",
                Value::Array("y".into(), vec![Value::Byte(97), Value::Byte(0)]),
            ),
        ] {
            assert_eq!(parse(given), Ok(expected), "{given}");
        }
    }

    #[test]
    fn no_values() {
        let deep = "[".repeat(100);
        let types = "@t ".repeat(100_000) + "1";
        let long = format!("({})", "1,".repeat(255));
        let deep_and_long = format!("[<({})>]", "1,".repeat(255));
        for given in [
            "",
            "nonsense",
            "'open",
            "[1, 'a']",
            "[1 2]",
            "[]",
            "uint64",
            "byte 256",
            "uint32 -1",
            "5 6",
            "@s 5",
            "(1",
            "()",
            "{'a': 1}",
            "<1",
            r"'\q'",
            "@a(sv []",
            &deep,
            &types,
            &long,
            &deep_and_long,
        ] {
            assert!(parse(given).is_err(), "{given}: {:?}", parse(given));
        }
    }

    fn asked(key: &str, value: &str) -> Result<Vec<Property>> {
        properties(&BTreeMap::from([(
            format!("{PREFIX}{key}"),
            value.to_owned(),
        )]))
    }

    #[test]
    fn properties_of_annotations() {
        for (key, value, name, expected) in [
            (
                "TimeoutStopUSec",
                "uint64 123456789",
                "TimeoutStopUSec",
                Value::U64(123_456_789),
            ),
            (
                "TimeoutStopSec",
                "uint64 5",
                "TimeoutStopUSec",
                Value::U64(5_000_000),
            ),
            (
                "RuntimeMaxSec",
                "1.5",
                "RuntimeMaxUSec",
                Value::U64(1_500_000),
            ),
            (
                "CollectMode",
                "'inactive-or-failed'",
                "CollectMode",
                Value::text("inactive-or-failed"),
            ),
        ] {
            assert_eq!(
                asked(key, value).unwrap(),
                [(name.to_owned(), expected)],
                "{key}"
            );
        }
        assert!(
            properties(&BTreeMap::from([("other".into(), "x".into())]))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn properties_that_are_refused() {
        for (key, value, expected) in [
            (
                "SuccessAction",
                "'poweroff-force'",
                "annotation org.systemd.property.SuccessAction: not a property that a container may set",
            ),
            (
                "PIDs",
                "[uint32 1]",
                "annotation org.systemd.property.PIDs: not a property that a container may set",
            ),
            (
                "",
                "1",
                "annotation org.systemd.property.: not a property that a container may set",
            ),
            (
                "TimeoutStopSec",
                "'soon'",
                "annotation org.systemd.property.TimeoutStopSec='soon' value parse error: not a number",
            ),
            (
                "CollectMode",
                "'open",
                "annotation org.systemd.property.CollectMode='open value parse error: no closing quotation mark",
            ),
        ] {
            assert_eq!(asked(key, value).unwrap_err().to_string(), expected);
        }
        let sorted = ALLOWED.is_sorted();
        assert!(sorted, "the list is to be read by people");
    }
}
