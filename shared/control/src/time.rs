//! Unix seconds as RFC 3339 in UTC, without a library for calendars.

/// `2026-11-21T18:02:00Z`.
pub fn rfc3339(unix: u64) -> String {
    let (days, rest) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// A sentence whose moments are for people: what the cores call `at 1795277753 (unix seconds)` becomes
/// `on 21 November 2026 at 16:15 UTC`.
pub fn with_dates(sentence: &str) -> String {
    const MARK: &str = " (unix seconds)";
    let mut out = String::new();
    let mut rest = sentence;
    while let Some(end) = rest.find(MARK) {
        let (before, after) = (&rest[..end], &rest[end + MARK.len()..]);
        let words = before.rsplit_once(' ').and_then(|(head, n)| Some((head, n.parse::<u64>().ok()?)));
        match words {
            Some((head, unix)) => {
                out.push_str(head.strip_suffix(" at").unwrap_or(head));
                out.push_str(" on ");
                out.push_str(&date(unix));
            }
            None => out.push_str(&rest[..end + MARK.len()]),
        }
        rest = after;
    }
    out + rest
}

/// `21 November 2026 at 16:15 UTC`.
pub fn date(unix: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, rest) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    let month = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    format!("{day} {month} {year} at {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

/// Days since 1970 as a date of the Gregorian calendar: eras of 400 years that begin in March, so that the leap day is
/// the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_in_sentences() {
        assert_eq!(
            with_dates("used by `a` at 1795277753 (unix seconds)"),
            "used by `a` on 21 November 2026 at 16:15 UTC"
        );
        assert_eq!(
            with_dates("it begins only at 0 (unix seconds): is this clock right?"),
            "it begins only on 1 January 1970 at 00:00 UTC: is this clock right?"
        );
        for plain in ["nothing", "at x (unix seconds)", " (unix seconds)", ""] {
            assert_eq!(with_dates(plain), plain);
        }
    }

    #[test]
    fn known_moments() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_277_753, "2026-11-21T16:15:53Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(unix), text);
        }
    }
}
