//! The forms in which containerd says where output goes.

use std::path::PathBuf;

use super::logger::Binary;

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uri {
    /// A path, most often of a fifo; empty for nowhere.
    Path(PathBuf),
    /// A file to append to.
    File(PathBuf),
    /// A program that takes it.
    Binary(Binary),
    /// Something else.
    Unknown(String),
}

impl Uri {
    /// Takes a URI apart: `fifo:///path`, `file:///path`, `binary:///path?key=value&…`, or a plain path.
    pub(crate) fn parse(text: &str) -> Self {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Self::Path(text.into());
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(decode(path, false));
        match scheme {
            "fifo" => Self::Path(path),
            "file" => Self::File(path),
            "binary" | "binary-v2" => Self::Binary(Binary {
                path,
                arguments: arguments(query),
                says_ready: scheme == "binary-v2",
            }),
            other => Self::Unknown(other.to_owned()),
        }
    }
}

/// Key and value of each part, sorted by key, as containerd passes them on; an empty value is left out.
fn arguments(query: &str) -> Vec<String> {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(key, value)| (decode(key, true), decode(value, true)))
        .collect();
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    pairs
        .into_iter()
        .flat_map(|(key, value)| [key, value])
        .filter(|word| !word.is_empty())
        .collect()
}

/// Undoes percent-encoding; in a query a plus is a blank.
fn decode(text: &str, query: bool) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        let escaped = text
            .get(index + 1..index + 3)
            .filter(|_| byte == b'%')
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(value) => {
                plain.push(value);
                index += 3;
            }
            None => {
                plain.push(if query && byte == b'+' { b' ' } else { byte });
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let binary = |path: &str, arguments: &[&str], says_ready| {
            Uri::Binary(Binary {
                path: path.into(),
                arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
                says_ready,
            })
        };
        for (text, expected) in [
            ("", Uri::Path("".into())),
            ("/run/f-stdout", Uri::Path("/run/f-stdout".into())),
            ("fifo:///run/f", Uri::Path("/run/f".into())),
            ("file:///var/log/a%20b", Uri::File("/var/log/a b".into())),
            (
                "binary:///usr/bin/logger",
                binary("/usr/bin/logger", &[], false),
            ),
            (
                "binary:///l?--b=x+y&a=1&c",
                binary("/l", &["--b", "x y", "a", "1", "c"], false),
            ),
            (
                "binary-v2:///l?k=%3d%zz",
                binary("/l", &["k", "=%zz"], true),
            ),
            ("npipe://x", Uri::Unknown("npipe".into())),
        ] {
            assert_eq!(Uri::parse(text), expected, "{text}");
        }
    }
}
