//! Sizes as coreutils and util-linux write them: K, M, G, ... and KiB, MiB, ... are powers of 1024,
//! KB, MB, ... powers of 1000.

/// The bytes that a text names.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: &str = "KMGTPE";
    let wrong = || {
        format!(
            "'{text}': give a number of bytes, with K, M, G, T, P or E for powers of 1024, or KB, \
             MB, ... for powers of 1000"
        )
    };
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (digits, suffix) = text.split_at(end.unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let mut letters = suffix.chars();
    let Some(unit) = letters.next() else {
        return Ok(number);
    };
    let base: u64 = match letters.as_str() {
        "" | "iB" => 1024,
        "B" => 1000,
        _ => return Err(wrong()),
    };
    let power = UNITS.find(unit.to_ascii_uppercase()).ok_or_else(wrong)?;
    let power = u32::try_from(power).map_or(0, |power| power + 1);
    let factor = base.checked_pow(power);
    let bytes = factor.and_then(|factor| number.checked_mul(factor));
    bytes.ok_or_else(|| format!("'{text}' is too large"))
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_as_coreutils_write_them() {
        for (text, expected) in [
            ("0", 0),
            ("512", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KB", 4000),
            ("4KiB", 4096),
            ("3M", 3 << 20),
            ("2GB", 2_000_000_000),
            ("7E", 7 << 60),
        ] {
            assert_eq!(bytes(text), Ok(expected));
        }
        for wrong in ["", "K", "-1", "+1", "1.5K", "4KX", "4KiBs", "99E", "4Z"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
