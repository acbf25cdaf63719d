//! Time stamps of log lines: RFC 3339 in UTC with nine digits of a second.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a stamp without its zone.
pub(crate) const LENGTH: usize = 29;

/// Formats `time` as `2026-11-21T07:21:19.123456789`, zone left to the caller.
/// Times before 1970 are shown as its beginning, those after 9999 as its end.
pub(crate) fn format(time: SystemTime) -> [u8; LENGTH] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    // 9999-12-31T23:59:59Z, the last second with a year of four digits.
    let seconds = since.as_secs().min(253_402_300_799);
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let of_day = seconds % 86_400;

    let mut stamp = *b"0000-00-00T00:00:00.000000000";
    digits(&mut stamp[0..4], year);
    digits(&mut stamp[5..7], month);
    digits(&mut stamp[8..10], day);
    digits(&mut stamp[11..13], of_day / 3600);
    digits(&mut stamp[14..16], of_day / 60 % 60);
    digits(&mut stamp[17..19], of_day % 60);
    digits(&mut stamp[20..29], u64::from(since.subsec_nanos()));
    stamp
}

/// Writes `value` right-aligned into `place`, which already holds zeros.
fn digits(place: &mut [u8], mut value: u64) {
    for byte in place.iter_mut().rev() {
        *byte = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Year, month and day of a number of days since 1970-01-01, in the proleptic
/// Gregorian calendar. Counts in eras of 400 years that begin in March, so that
/// the leap day is the last of its year.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_ERA: u64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let shifted = days + 719_468;
    let era = shifted / DAYS_OF_ERA;
    let day_of_era = shifted % DAYS_OF_ERA;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_moments() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000000000"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001"),
            (1_709_251_199, 5, "2024-02-29T23:59:59.000000005"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000"),
            (1_795_245_679, 123_456_789, "2026-11-21T07:21:19.123456789"),
            (u64::MAX / 4, 0, "9999-12-31T23:59:59.000000000"),
        ];
        for (seconds, nanos, expected) in cases {
            let Some(time) = UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)) else {
                continue;
            };
            assert_eq!(
                String::from_utf8_lossy(&format(time)),
                expected,
                "{seconds}"
            );
        }
    }
}
