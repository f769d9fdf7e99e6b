//! Times on the command line of touch: dates as GNU's `date -d` reads them, and stamps of POSIX.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp as JiffTimestamp, ToSpan, Zoned};
use xtent::volume::Timestamp;

use super::failure::Failure;
use super::quoting::quoted;

/// A date, relative to a time or to now.
pub(super) fn date(text: &str, base: Option<Timestamp>) -> Result<Timestamp, Failure> {
    let invalid = || {
        let text = quoted(text.as_bytes());
        Failure::usage(format!(
            "invalid date {text}: give one as `date -d` reads it"
        ))
    };
    let base = match base {
        None => Zoned::now(),
        Some(base) => zoned(base).ok_or_else(|| {
            let text = "the times of the reference file are outside the range that dates can be relative to";
            Failure::usage(text)
        })?,
    };
    // Nothing at all is the beginning of the day for GNU.
    let text = if text.trim().is_empty() {
        "00:00"
    } else {
        text
    };
    let parsed = parse_datetime::parse_datetime_at_date(base, text).map_err(|_| invalid())?;
    Ok(Timestamp {
        seconds: parsed.unix_epoch_second(),
        nanoseconds: u32::try_from(parsed.subsec_nanosecond()).map_err(|_| invalid())?,
    })
}

fn zoned(time: Timestamp) -> Option<Zoned> {
    let nanoseconds = i32::try_from(time.nanoseconds).ok()?;
    let time = JiffTimestamp::new(time.seconds, nanoseconds).ok()?;
    Some(time.to_zoned(TimeZone::system()))
}

/// `[[CC]YY]MMDDhhmm[.ss]`, as touch(1) of POSIX has it, in the time zone of this host.
pub(super) fn stamp(text: &str) -> Result<Timestamp, Failure> {
    stamp_in(text, &TimeZone::system(), || Zoned::now().year()).ok_or_else(|| {
        let text = quoted(text.as_bytes());
        Failure::usage(format!("invalid stamp {text}: give [[CC]YY]MMDDhhmm[.ss]"))
    })
}

fn stamp_in(text: &str, zone: &TimeZone, this_year: impl FnOnce() -> i16) -> Option<Timestamp> {
    let (digits, seconds) = text.split_once('.').unwrap_or((text, "00"));
    let pairs = |text: &str| -> Option<Vec<i8>> {
        let is_pairs = text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_digit());
        let pairs = text.as_bytes().chunks(2);
        is_pairs.then(|| {
            let value =
                |pair: &[u8]| (pair[0] - b'0').cast_signed() * 10 + (pair[1] - b'0').cast_signed();
            pairs.map(value).collect()
        })
    };
    let digits = pairs(digits)?;
    let [second] = pairs(seconds)?[..] else {
        return None;
    };
    let (year, rest) = match digits[..] {
        [century, year, ref rest @ ..] if rest.len() == 4 => {
            (i16::from(century) * 100 + i16::from(year), rest)
        }
        [year, ref rest @ ..] if rest.len() == 4 => {
            let century = if year < 69 { 2000 } else { 1900 };
            (century + i16::from(year), rest)
        }
        ref rest => (this_year(), rest),
    };
    let &[month, day, hour, minute] = rest else {
        return None;
    };
    // A leap second is the one after it.
    let leap = i64::from(second == 60);
    let second = second - i8::from(second == 60);
    let local = DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    // No time that clocks skip: mktime(3).
    let zoned = zone.to_zoned(local).ok()?;
    let zoned = Some(zoned).filter(|zoned| zoned.datetime() == local)?;
    let time = zoned.checked_add(leap.seconds()).ok()?.timestamp();
    Some(Timestamp {
        seconds: time.as_second(),
        nanoseconds: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_those_of_posix() {
        let stamp = |text| stamp_in(text, &TimeZone::UTC, || 2026).map(|time| time.seconds);
        assert_eq!(stamp("197001010000.01"), Some(1));
        assert_eq!(stamp("7001010000"), Some(0));
        assert_eq!(stamp("6812312359.60"), Some(3_124_224_000));
        assert_eq!(stamp("11281200"), Some(1_795_867_200));
        assert_eq!(stamp("196912312359.59"), Some(-1));
        for text in [
            "",
            "1",
            "1128120",
            "13281200",
            "11312400",
            "11281260",
            "11281200.",
            "11281200.61",
            "11281200.5",
            "+1281200",
            "1920261128120000",
            "0230120000",
        ] {
            assert_eq!(stamp(text), None, "{text}");
        }
    }
}
