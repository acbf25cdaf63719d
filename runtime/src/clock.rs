//! Times as RFC 3339 in UTC: for state files and log lines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, since the epoch.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Now with nanoseconds, trailing zeros left out, as Go writes times in JSON.
pub(crate) fn now_with_nanoseconds() -> String {
    let now = now();
    let mut text = seconds(now.as_secs());
    if now.subsec_nanos() != 0 {
        text.push_str(format!(".{:09}", now.subsec_nanos()).trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Now in whole seconds.
pub(crate) fn now_in_seconds() -> String {
    seconds(now().as_secs()) + "Z"
}

/// Date and time of a number of seconds since the epoch, in the proleptic Gregorian calendar.
fn seconds(since_epoch: u64) -> String {
    let (days, second) = (since_epoch / 86_400, since_epoch % 86_400);
    // Counted from 1 March of the year 0, so that the leap day is the last of its year: 719468 days before the epoch.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
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
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        assert_eq!(seconds(0), "1970-01-01T00:00:00");
        assert_eq!(seconds(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(seconds(1_704_067_199), "2023-12-31T23:59:59");
        assert_eq!(seconds(4_107_542_400), "2100-03-01T00:00:00");
    }
}
