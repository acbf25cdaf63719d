//! `ADD https://…`: a file from an address.
//!
//! It is fetched by every build, since only its content tells whether the step is to be done again. It goes into a file
//! without a name, so that nothing is left of it whatever happens.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::time::Duration;

use bundle_tools::Digest;
use bundle_tools::digest::HashWriter;
use rustix::fs::{Mode, OFlags, openat};

use super::{Error, FileContext, Result};
use crate::store::Store;

/// How long a server has for accepting a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// A file that was fetched.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) address: String,
    pub(super) content: File,
    pub(super) digest: Digest,
    /// Seconds since 1970, when the server says so.
    pub(super) modified: Option<i64>,
}

impl Fetched {
    /// The last part of the address's path; `None` when there is none.
    pub(super) fn name(&self) -> Option<&str> {
        let path = self.address.split(['?', '#']).next()?;
        let (_, path) = path.split_once("://")?;
        let (_, name) = path.rsplit_once('/')?;
        Some(name).filter(|name| !matches!(*name, "" | "." | ".."))
    }
}

/// Whether a source is an address that can be fetched.
pub(super) fn is_address(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Fetches a file, and checks it against `checksum`. `go_on` is asked now and then whether it is still wanted.
pub(super) fn fetch(
    store: &Store,
    address: &str,
    checksum: Option<&str>,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Fetched> {
    let expected = checksum
        .map(str::parse::<Digest>)
        .transpose()
        .map_err(|error| Error::Invalid(format!("--checksum: {error}")))?;
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = openat(rustix::fs::CWD, store.root(), flags, mode)
        .doing("make a temporary file in", store.root())?;
    let mut writer = HashWriter::new(File::from(file));
    let modified = transfer(address, &mut writer, go_on)?;
    let (digest, _, mut content) = writer.finish();
    content.rewind().doing("read back", store.root())?;
    if let Some(expected) = expected
        && expected != digest
    {
        return Err(Error::Invalid(format!(
            "{address} has the digest {digest}, and --checksum wants {expected}"
        )));
    }
    Ok(Fetched {
        address: address.to_owned(),
        content,
        digest,
        modified,
    })
}

/// Writes the body; returns when it was last modified.
fn transfer(
    address: &str,
    out: &mut impl Write,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Option<i64>> {
    let failed = |error: reqwest::Error| Error::Fetch {
        address: address.to_owned(),
        source: Box::new(error.without_url()),
    };
    let disk = |error: io::Error| Error::Fetch {
        address: address.to_owned(),
        source: Box::new(error),
    };
    // Fails when it was set before, which is as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(disk)?;
    let client = reqwest::Client::builder()
        .user_agent(concat!("qengine/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE)
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
        let response = client.get(address).send().await.map_err(failed)?;
        let mut response = response.error_for_status().map_err(failed)?;
        let modified = response
            .headers()
            .get(reqwest::header::LAST_MODIFIED)
            .and_then(|value| jiff::fmt::rfc2822::parse(value.to_str().ok()?).ok())
            .map(|time| time.timestamp().as_second());
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            go_on()?;
            out.write_all(&chunk).map_err(disk)?;
        }
        Ok(modified)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_path() {
        let name = |address: &str| {
            let fetched = Fetched {
                address: address.to_owned(),
                content: File::open("/dev/null").unwrap(),
                digest: Digest::sha256_of(b""),
                modified: None,
            };
            fetched.name().map(str::to_owned)
        };
        for (address, expected) in [
            ("http://a/b/c.tar?x=/y", Some("c.tar")),
            ("https://a/b", Some("b")),
            ("http://a", None),
            ("http://a/", None),
            ("http://a/b/..", None),
        ] {
            assert_eq!(name(address).as_deref(), expected, "{address}");
        }
    }
}
