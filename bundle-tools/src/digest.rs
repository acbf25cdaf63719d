//! Content digests: parsed once, safe to use as a file name or in an URL after.
//!
//! A [`Digest`] can only hold a registered algorithm and exactly as many
//! lower-case hex digits as that algorithm has, so nothing that came from a
//! registry or an index can smuggle a path in (CVE-2024-3727).
//!
//! Governing text: image-spec, descriptor.md, "Digests".

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// A checked digest such as `sha256:9834876dcfb05cb1…`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A string is not a usable digest.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The part before the colon is no algorithm this library computes.
    #[error("digest {0:?}: unknown algorithm, expected sha256 or sha512")]
    Algorithm(String),
    /// The part after the colon has another length or other characters.
    #[error("digest {text:?}: expected {digits} lower-case hex digits after the colon")]
    Hex {
        /// The refused text, shortened.
        text: String,
        /// How many digits the algorithm has.
        digits: usize,
    },
}

impl Digest {
    /// The algorithm's name: `sha256` or `sha512`.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        self.split().0
    }

    /// The lower-case hex digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.split().1
    }

    /// The first twelve hex digits, as listings show them.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// The whole text, `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SHA-256 digest of `bytes`.
    #[must_use]
    pub fn sha256_of(bytes: &[u8]) -> Digest {
        Digest::from_sha256(Sha256::digest(bytes).as_slice())
    }

    /// Hashes `bytes` with this digest's own algorithm and compares.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::like(self);
        hasher.update(bytes);
        hasher.finish() == *self
    }

    fn from_sha256(raw: &[u8]) -> Digest {
        Digest(format!("sha256:{}", hex(raw)))
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or((&self.0, ""))
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Digest, ParseError> {
        let (algorithm, hex) = text.split_once(':').unwrap_or((text, ""));
        let digits = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(ParseError::Algorithm(excerpt(text))),
        };
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != digits || !hex.bytes().all(is_hex) {
            return Err(ParseError::Hex {
                text: excerpt(text),
                digits,
            });
        }
        Ok(Digest(text.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Digest, ParseError> {
        text.parse()
    }
}

impl TryFrom<&str> for Digest {
    type Error = ParseError;

    fn try_from(text: &str) -> Result<Digest, ParseError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A running hash of one of the known algorithms.
#[derive(Clone, Debug)]
pub struct Hasher(Algorithm);

#[derive(Clone, Debug)]
enum Algorithm {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// A SHA-256 hash, the one new content gets.
    #[must_use]
    pub fn sha256() -> Hasher {
        Hasher(Algorithm::Sha256(Sha256::new()))
    }

    /// A hash of the algorithm that `expected` was made with.
    #[must_use]
    pub fn like(expected: &Digest) -> Hasher {
        match expected.algorithm() {
            "sha512" => Hasher(Algorithm::Sha512(Box::new(Sha512::new()))),
            _ => Hasher::sha256(),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Algorithm::Sha256(state) => state.update(bytes),
            Algorithm::Sha512(state) => state.update(bytes),
        }
    }

    /// Ends the hash.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            Algorithm::Sha256(state) => Digest::from_sha256(state.finalize().as_slice()),
            Algorithm::Sha512(state) => {
                Digest(format!("sha512:{}", hex(state.finalize().as_slice())))
            }
        }
    }
}

/// Passes reads on, hashing and counting what went through.
#[derive(Debug)]
pub struct HashReader<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> HashReader<R> {
    /// Hashes what is read from `inner` with SHA-256.
    pub fn new(inner: R) -> HashReader<R> {
        HashReader::with(inner, Hasher::sha256())
    }

    /// Hashes what is read from `inner` with `hasher`.
    pub fn with(inner: R, hasher: Hasher) -> HashReader<R> {
        HashReader {
            inner,
            hasher,
            count: 0,
        }
    }

    /// Bytes read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Reads what is left, so that the digest is that of the whole input.
    ///
    /// # Errors
    /// Whatever the inner reader fails with.
    pub fn drain(&mut self) -> io::Result<u64> {
        io::copy(self, &mut io::sink())
    }

    /// The digest and number of the bytes read so far.
    pub fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.count)
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.count += length as u64;
        Ok(length)
    }
}

/// Passes writes on, hashing and counting what went through.
#[derive(Debug)]
pub struct HashWriter<W> {
    inner: W,
    hasher: Hasher,
    count: u64,
}

impl<W: Write> HashWriter<W> {
    /// Hashes what is written to `inner` with SHA-256.
    pub fn new(inner: W) -> HashWriter<W> {
        HashWriter::with(inner, Hasher::sha256())
    }

    /// Hashes what is written to `inner` with `hasher`.
    pub fn with(inner: W, hasher: Hasher) -> HashWriter<W> {
        HashWriter {
            inner,
            hasher,
            count: 0,
        }
    }

    /// Bytes written so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The writer underneath.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// The digest and number of the bytes written, and the writer underneath.
    pub fn finish(self) -> (Digest, u64, W) {
        (self.hasher.finish(), self.count, self.inner)
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.count += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(raw: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(raw.len() * 2);
    for byte in raw {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Untrusted text for an error message: bounded.
fn excerpt(text: &str) -> String {
    text.chars().take(140).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn accepts_the_registered_forms_only() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest.algorithm(), "sha256");
        assert_eq!(digest.hex(), &EMPTY[7..]);
        assert_eq!(digest.short(), "e3b0c44298fc");
        assert_eq!(digest.to_string(), EMPTY);
        assert!(
            format!("sha512:{}", "a".repeat(128))
                .parse::<Digest>()
                .is_ok()
        );

        let refused = [
            "",
            "sha256",
            "sha256:",
            "sha256:../../etc/passwd",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &EMPTY.to_uppercase(),
            &format!("sha256:{}", "A".repeat(64)),
            &EMPTY[..EMPTY.len() - 1],
            &format!("{EMPTY}0"),
            &format!("{EMPTY}\n"),
            &format!("sha256:{}/", "a".repeat(63)),
            &format!("SHA256:{}", "a".repeat(64)),
            &format!("sha256+b64:{}", "a".repeat(64)),
        ];
        for text in refused {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn deserializing_checks() {
        assert!(serde_json::from_str::<Digest>(&format!("{EMPTY:?}")).is_ok());
        let bad = serde_json::from_str::<Digest>("\"sha256:../x\"");
        assert!(
            bad.unwrap_err()
                .to_string()
                .contains("64 lower-case hex digits")
        );
    }

    #[test]
    fn hashes_in_passing() {
        let mut reader = HashReader::new(&b"hello"[..]);
        let mut out = HashWriter::new(Vec::new());
        io::copy(&mut reader, &mut out).unwrap();
        let expected = Digest::sha256_of(b"hello");
        assert_eq!(reader.finish(), (expected.clone(), 5));
        assert_eq!(out.finish(), (expected.clone(), 5, b"hello".to_vec()));
        assert!(expected.matches(b"hello"));
        assert!(!expected.matches(b"hello!"));
        assert_eq!(Digest::sha256_of(b"").as_str(), EMPTY);
    }

    #[test]
    fn sha512_is_verified_with_sha512() {
        let mut hasher = Hasher::like(&format!("sha512:{}", "0".repeat(128)).parse().unwrap());
        hasher.update(b"abc");
        let digest = hasher.finish();
        assert!(digest.as_str().starts_with("sha512:ddaf35a193617aba"));
        assert!(digest.matches(b"abc"));
    }
}
