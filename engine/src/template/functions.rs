//! What templates may call, and how values read as text.

use std::cmp::Ordering;

use serde_json::Value;

use super::evaluate::Found;
use super::printf;

/// Every function: Go's own, then docker's.
const KNOWN: [&str; 25] = [
    "and", "or", "not", "len", "index", "slice", "print", "printf", "println", "html", "urlquery",
    "eq", "ne", "lt", "le", "gt", "ge", "json", "split", "join", "lower", "upper", "title", "pad",
    "truncate",
];

pub(super) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

/// Whether a heading goes through the function as it is.
pub(super) fn passes_headings(name: &str) -> bool {
    matches!(
        name,
        "json" | "split" | "join" | "lower" | "upper" | "title" | "index" | "slice"
    )
}

/// Calls a function; an error is its message.
pub(super) fn call(name: &str, arguments: &[Found]) -> Result<Found, String> {
    let fail = |message: String| format!("error calling {name}: {message}");
    let value = match name {
        "print" => Value::String(printf::print(arguments)),
        "println" => Value::String(printf::println(arguments)),
        "printf" => Value::String(printf::printf(arguments).map_err(fail)?),
        "and" | "or" if !arguments.is_empty() => return Ok(arguments.last().cloned().flatten()),
        "not" => Value::Bool(!truth(one(name, arguments)?)),
        "len" => length(one(name, arguments)?).map_err(fail)?,
        "index" => return index(arguments).map_err(fail),
        "slice" => slice(arguments).map_err(fail)?,
        "eq" | "ne" | "lt" | "le" | "gt" | "ge" => {
            Value::Bool(compare(name, arguments).map_err(fail)?)
        }
        "json" => {
            let value = one(name, arguments)?.clone().unwrap_or(Value::Null);
            Value::String(value.to_string())
        }
        "html" => Value::String(escape_html(&printf::print(arguments))),
        "urlquery" => Value::String(escape_query(&printf::print(arguments))),
        "lower" | "upper" | "title" => {
            let text = string(name, one(name, arguments)?)?;
            Value::String(match name {
                "lower" => text.to_lowercase(),
                "upper" => text.to_uppercase(),
                _ => title(text),
            })
        }
        _ => return docker(name, arguments),
    };
    Ok(Some(value))
}

/// Docker's functions of more than one argument.
fn docker(name: &str, arguments: &[Found]) -> Result<Found, String> {
    let wanted = if name == "pad" { 3 } else { 2 };
    if arguments.len() != wanted {
        return Err(format!(
            "wrong number of args for {name}: want {wanted} got {}",
            arguments.len()
        ));
    }
    Ok(Some(match name {
        "split" => {
            let separator = string(name, &arguments[1])?;
            let text = string(name, &arguments[0])?;
            text.split(separator).map(Value::from).collect()
        }
        "join" => {
            let separator = string(name, &arguments[1])?;
            let items = match &arguments[0] {
                None | Some(Value::Null) => &Vec::new(),
                Some(Value::Array(items)) => items,
                Some(other) => return Err(format!("wrong type for join: {}", kind(other))),
            };
            let texts: Vec<String> = items.iter().map(plain).collect();
            Value::String(texts.join(separator))
        }
        "truncate" => {
            let length = count(name, &arguments[1])?;
            Value::String(string(name, &arguments[0])?.chars().take(length).collect())
        }
        "pad" => {
            let text = string(name, &arguments[0])?;
            let (before, after) = (count(name, &arguments[1])?, count(name, &arguments[2])?);
            Value::String(match text {
                "" => String::new(),
                text => format!("{}{text}{}", " ".repeat(before), " ".repeat(after)),
            })
        }
        _ => return Err(format!("function {name:?} not defined")),
    }))
}

/// What a condition makes of a value.
pub(super) fn truth(value: &Found) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(value)) => *value,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
    }
}

/// A value as `{{.}}` prints it.
pub(super) fn text(value: &Found) -> String {
    value
        .as_ref()
        .map_or_else(|| "<no value>".to_owned(), plain)
}

/// A value as Go's `%v` prints it.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let items: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", plain(value)))
                .collect();
            format!("map[{}]", items.join(" "))
        }
    }
}

/// A value's kind, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn one<'a>(name: &str, arguments: &'a [Found]) -> Result<&'a Found, String> {
    match arguments {
        [argument] => Ok(argument),
        _ => Err(format!(
            "wrong number of args for {name}: want 1 got {}",
            arguments.len()
        )),
    }
}

fn string<'a>(name: &str, value: &'a Found) -> Result<&'a str, String> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!(
            "wrong type for {name}: expected a string, got {}",
            kind(other)
        )),
        None => Err(format!("invalid value for {name}: expected a string")),
    }
}

fn count(name: &str, value: &Found) -> Result<usize, String> {
    value
        .as_ref()
        .and_then(Value::as_u64)
        .and_then(|count| usize::try_from(count).ok())
        // A million blanks is nobody's wish.
        .filter(|&count| count <= 1 << 20)
        .ok_or_else(|| format!("wrong type for {name}: expected a small whole number"))
}

fn length(value: &Found) -> Result<Value, String> {
    Ok(Value::from(match value {
        Some(Value::String(text)) => text.len(),
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(map)) => map.len(),
        None | Some(Value::Null) => 0,
        Some(other) => return Err(format!("len of {}", kind(other))),
    }))
}

fn index(arguments: &[Found]) -> Result<Found, String> {
    let Some((first, keys)) = arguments.split_first() else {
        return Err("wrong number of args: want at least 1 got 0".to_owned());
    };
    let mut value = first.clone();
    for key in keys {
        value = match (value, key) {
            // Docker's maps are maps of texts and lists; what a map has not is empty text, and nothing.
            (Some(Value::Object(mut map)), Some(Value::String(key))) => {
                Some(map.remove(key).unwrap_or_else(|| "".into()))
            }
            (Some(Value::Array(mut items)), Some(Value::Number(number))) => {
                let index = number
                    .as_u64()
                    .and_then(|index| usize::try_from(index).ok())
                    .filter(|&index| index < items.len())
                    .ok_or_else(|| format!("index out of range: {number}"))?;
                Some(items.swap_remove(index))
            }
            (Some(Value::String(text)), Some(Value::Number(number))) => {
                let byte = number
                    .as_u64()
                    .and_then(|index| text.as_bytes().get(usize::try_from(index).ok()?).copied());
                Some(Value::from(
                    byte.ok_or_else(|| format!("index out of range: {number}"))?,
                ))
            }
            (None | Some(Value::Null), Some(Value::String(_))) => Some("".into()),
            (None | Some(Value::Null), _) => return Err("index of untyped nil".to_owned()),
            (Some(value), _) => return Err(format!("can't index {} so", kind(&value))),
        };
    }
    Ok(value)
}

fn slice(arguments: &[Found]) -> Result<Value, String> {
    let Some((Some(value), bounds)) = arguments.split_first() else {
        return Err("slice of untyped nil".to_owned());
    };
    let length = length(&Some(value.clone()))?.as_u64().unwrap_or(0);
    let bound = |index: usize, default: u64| match bounds.get(index) {
        None => Ok(default),
        Some(Some(Value::Number(number))) => number
            .as_u64()
            .filter(|&bound| bound <= length)
            .ok_or_else(|| format!("index out of range: {number}")),
        Some(_) => Err("cannot index slice/array with this type".to_owned()),
    };
    let (start, end) = (bound(0, 0)?, bound(1, length)?);
    let range = usize::try_from(start).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
    if start > end {
        return Err(format!("invalid slice index: {start} > {end}"));
    }
    match value {
        Value::String(text) => text
            .get(range)
            .map(Value::from)
            .ok_or_else(|| "slice cuts a letter in two".to_owned()),
        Value::Array(items) => Ok(items[range].iter().cloned().collect()),
        other => Err(format!("can't slice {}", kind(other))),
    }
}

/// `eq` takes several: whether the first is any of the others.
fn compare(name: &str, arguments: &[Found]) -> Result<bool, String> {
    let (first, rest) = match arguments {
        [first, rest @ ..] if rest.len() == 1 || (name == "eq" && !rest.is_empty()) => {
            (first, rest)
        }
        _ => return Err("missing argument for comparison".to_owned()),
    };
    let mut any = false;
    for other in rest {
        any |= match name {
            "eq" => equal(first, other)?,
            "ne" => !equal(first, other)?,
            _ => {
                let order = order(first, other)?;
                match name {
                    "lt" => order == Ordering::Less,
                    "le" => order != Ordering::Greater,
                    "gt" => order == Ordering::Greater,
                    _ => order != Ordering::Less,
                }
            }
        };
    }
    Ok(any)
}

fn equal(left: &Found, right: &Found) -> Result<bool, String> {
    let null = Value::Null;
    let (left, right) = (
        left.as_ref().unwrap_or(&null),
        right.as_ref().unwrap_or(&null),
    );
    match (left, right) {
        (Value::Null, Value::Null) => Ok(true),
        (Value::Null, _) | (_, Value::Null) => Ok(false),
        (Value::Bool(left), Value::Bool(right)) => Ok(left == right),
        (Value::String(left), Value::String(right)) => Ok(left == right),
        (Value::Number(left), Value::Number(right)) => {
            Ok(left == right || left.as_f64() == right.as_f64())
        }
        (Value::Array(_) | Value::Object(_), _) | (_, Value::Array(_) | Value::Object(_)) => {
            Err("non-comparable type".to_owned())
        }
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

fn order(left: &Found, right: &Found) -> Result<Ordering, String> {
    match (left, right) {
        (Some(Value::String(left)), Some(Value::String(right))) => Ok(left.cmp(right)),
        (Some(Value::Number(left)), Some(Value::Number(right))) => left
            .as_f64()
            .zip(right.as_f64())
            .and_then(|(left, right)| left.partial_cmp(&right))
            .ok_or_else(|| "invalid type for comparison".to_owned()),
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

/// Each word with a capital.
fn title(text: &str) -> String {
    let mut inside = false;
    text.chars()
        .flat_map(|letter| {
            let starts = !std::mem::replace(&mut inside, letter.is_alphanumeric() || letter == '_');
            let upper: Vec<char> = if starts {
                letter.to_uppercase().collect()
            } else {
                vec![letter]
            };
            upper
        })
        .collect()
}

fn escape_html(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

fn escape_query(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
