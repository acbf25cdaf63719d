//! Points in time, as docker's `--since` and `--until` take them.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// RFC 3339 (the zone and the end may be missing), seconds since 1970, or a span back from now such as `10m`.
///
/// # Errors
/// For anything else: what was expected.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Some(time) = seconds(text) {
        return Ok(time);
    }
    if let Ok(local) = text.parse::<DateTime>()
        && let Ok(time) = local.to_zoned(TimeZone::system())
    {
        return Ok(time.timestamp());
    }
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|span| Timestamp::now().checked_sub(span).ok())
        .ok_or_else(|| {
            format!(
                "invalid time {text:?}: expected 2026-01-31T12:00:00Z, seconds since 1970, or a span such as 10m"
            )
        })
}

/// `1700000000`, `1700000000.123456789`.
fn seconds(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanoseconds: i32 = format!("{fraction:0<9}").parse().ok()?;
    Timestamp::new(whole.parse().ok()?, nanoseconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, nanoseconds) in [
            ("1", 1_000_000_000),
            ("1.5", 1_500_000_000),
            ("1970-01-01T00:00:02Z", 2_000_000_000),
            ("1970-01-01T01:00:02+01:00", 2_000_000_000),
        ] {
            assert_eq!(parse(text).unwrap().as_nanosecond(), nanoseconds, "{text}");
        }
        assert!(parse("10m").unwrap() < Timestamp::now());
        assert!(parse("2026-01-02").is_ok());
        for text in ["", "soon", "1.", "1.x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
