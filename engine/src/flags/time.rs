//! Points in time, as docker's `--since` and `--until` take them.

use anyhow::{Result, anyhow};
use jiff::Timestamp;

/// See [`qengine::store::time::parse`].
pub(crate) fn parse(text: &str) -> Result<Timestamp> {
    qengine::store::time::parse(text).map_err(|text| anyhow!(text))
}
