//! Sizes and times on the command line, as fio writes them.

use std::time::Duration;

use xtent::target::Wait;

/// `4096`, `0x1000`, `4k`, `128k`, `1g`: powers of 1024.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    if let Some(digits) = hex {
        let number = u64::from_str_radix(digits, 16).ok();
        let number = number.filter(|_| !digits.starts_with('+'));
        return number.ok_or_else(|| "give hexadecimal digits after 0x".into());
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        "t" | "tb" | "tib" => Some(40),
        _ => None,
    };
    let number: Option<u64> = digits.parse().ok();
    shift
        .zip(number)
        .and_then(|(shift, number)| number.checked_mul(1 << shift))
        .ok_or_else(|| "give bytes, or a number with k, m, g or t".into())
}

/// A part of a file: bytes, or a percentage of all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    Bytes(u64),
    Percent(u8),
}

impl Share {
    /// The bytes of a file of this length; a size of 0 is all of it, as for fio.
    pub(super) fn of(self, len_bytes: u64) -> u64 {
        match self {
            Self::Bytes(0) => len_bytes,
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                let part = u128::from(len_bytes) * u128::from(percent) / 100;
                u64::try_from(part).unwrap_or(len_bytes)
            }
        }
    }
}

/// A size as [`size`] has it, or `50%`.
pub(super) fn share(text: &str) -> Result<Share, String> {
    let Some(number) = text.strip_suffix('%') else {
        return size(text).map(Share::Bytes);
    };
    let percent = number.parse().ok().filter(|p| (1..=100).contains(p));
    percent
        .map(Share::Percent)
        .ok_or_else(|| "give bytes, or 1% to 100%".into())
}

impl Share {
    /// The offset that it names in a file of this length.
    pub(super) fn start(self, len_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // On a block of 4 KiB, as direct I/O needs it.
            Self::Percent(_) => self.of(len_bytes) & !4095,
        }
    }
}

/// A flag's value, as fio has it.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("give 0 or 1".into()),
    }
}

/// Percentiles in rising order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PercentileList(pub(super) Vec<f64>);

/// `50:99:99.9999`, as fio has it, or with commas; 20 at most.
pub(super) fn percentiles(text: &str) -> Result<PercentileList, String> {
    let mut list = Vec::new();
    for part in text.split([':', ',']) {
        match part.trim().parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => list.push(percent),
            _ => return Err(format!("`{part}`: give percentages between 0 and 100")),
        }
    }
    if list.len() > 20 {
        return Err("give 20 percentiles at most".into());
    }
    list.sort_by(f64::total_cmp);
    list.dedup();
    Ok(PercentileList(list))
}

/// Numbers of CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CpuList(pub(super) Vec<usize>);

/// The most CPUs that Linux can be built for on x86-64.
const MOST_CPUS: usize = 8192;

/// `0-3,6`.
pub(super) fn cpus(text: &str) -> Result<CpuList, String> {
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&n| n < MOST_CPUS);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => list.extend(first..=last),
            _ => return Err(format!("`{part}`: give CPU numbers as in 0-3,6")),
        }
    }
    list.sort_unstable();
    list.dedup();
    Ok(CpuList(list))
}

/// `10`, `1.5`, `10s`, `2m`, `500ms`, `1h`: seconds without a unit.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => Some(1.0),
        "ms" => Some(1e-3),
        "us" => Some(1e-6),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    let number: Option<f64> = digits.parse().ok();
    unit.zip(number)
        .and_then(|(unit, number)| Duration::try_from_secs_f64(unit * number).ok())
        .filter(|time| *time <= Duration::from_secs(365 * 86_400))
        .ok_or_else(|| "give seconds, or a number with ms, s, m or h".into())
}

/// Permission bits in octal: `600`, `0660`.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "give permission bits in octal, such as 600 or 660".into())
}

/// How threads wait.
pub(super) fn wait(text: &str) -> Result<Wait, String> {
    match text {
        "poll" => Ok(Wait::Poll),
        "interrupt" => Ok(Wait::Interrupt),
        "adaptive" => Ok(Wait::ADAPTIVE),
        _ => Err("give poll, interrupt or adaptive".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("600"), Ok(0o600));
        assert_eq!(mode("0660"), Ok(0o660));
        for bad in ["", "800", "1777", "-1", "rw", "0o600"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_of_percentiles_and_cpus_as_fio_writes_them() {
        let list = |text| percentiles(text).map(|list| list.0);
        assert_eq!(list("50:99.9999"), Ok(vec![50.0, 99.9999]));
        assert_eq!(list("99,50,99"), Ok(vec![50.0, 99.0]));
        for wrong in ["", "0", "101", "x", "50:", "nan"] {
            assert!(list(wrong).is_err(), "{wrong}");
        }
        assert_eq!(cpus("0-2,5"), Ok(CpuList(vec![0, 1, 2, 5])));
        for wrong in ["", "3-1", "-1", "0-", "9999999", "0-9999999999999"] {
            assert!(cpus(wrong).is_err(), "{wrong}");
        }
        assert_eq!((flag("1"), flag("0")), (Ok(true), Ok(false)));
        assert!(flag("maybe").is_err());
        assert_eq!(share("50%").map(|s| s.start(10_000)), Ok(4096));
        assert_eq!(share("0").map(|s| s.start(10_000)), Ok(0));
    }

    #[test]
    fn sizes_and_times_as_fio_writes_them() {
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("0x1000"), Ok(4096));
        for wrong in ["", "k", "4x", "-1", "1.5k", "99999999999t", "0x", "0x+1"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(share("50%").map(|s| s.of(16 << 20)), Ok(8 << 20));
        assert_eq!(share("1m").map(|s| s.of(16 << 20)), Ok(1 << 20));
        assert_eq!(share("0").map(|s| s.of(16 << 20)), Ok(16 << 20));
        for wrong in ["0%", "101%", "%", "1.5%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        assert_eq!(time("10"), Ok(Duration::from_secs(10)));
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "-1", "1y", "nan", "inf", "1e300"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
