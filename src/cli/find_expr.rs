//! The expression of `xtent find`: tests in find's words, all of which a file must pass.

use std::ffi::OsString;

use xtent::volume::{FileType, Metadata, Timestamp};

use super::failure::{Failure, USAGE};

/// The words that are known, for messages.
const KNOWN: &str = "-name -iname -path -ipath -type -size -mtime -mmin -newer -maxdepth -mindepth -inum -links \
                     -uid -gid -perm -empty -print -print0 -not, !";

/// `N`, `+N` or `-N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amount {
    Exactly(u64),
    More(u64),
    Less(u64),
}

impl Amount {
    fn of(text: &str) -> Option<Self> {
        let (make, digits): (fn(u64) -> Self, _) = match text.as_bytes().first()? {
            b'+' => (Self::More, &text[1..]),
            b'-' => (Self::Less, &text[1..]),
            _ => (Self::Exactly, text),
        };
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok().map(make)).flatten()
    }

    fn fits(self, value: u64) -> bool {
        match self {
            Self::Exactly(n) => value == n,
            Self::More(n) => value > n,
            Self::Less(n) => value < n,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Name {
        pattern: Vec<u8>,
        fold: bool,
    },
    Path {
        pattern: Vec<u8>,
        fold: bool,
    },
    Type(Vec<FileType>),
    /// In units of so many bytes, rounded up.
    Size(Amount, u64),
    /// Age in units of so many seconds, rounded down.
    Modified(Amount, u64),
    Newer(OsString),
    Inode(Amount),
    Links(Amount),
    Uid(Amount),
    Gid(Amount),
    Mode(u32),
    AllOfMode(u32),
    AnyOfMode(u32),
    Empty,
}

/// A file that an expression is applied to.
pub(super) struct Candidate<'a> {
    pub(super) name: &'a [u8],
    pub(super) path: &'a [u8],
    pub(super) metadata: &'a Metadata,
    /// Seconds since 1970 at the start.
    pub(super) now: i64,
}

/// An expression.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Expression {
    tests: Vec<(bool, Test)>,
    pub(super) max_depth: Option<usize>,
    pub(super) min_depth: usize,
    /// Names end with NUL.
    pub(super) print0: bool,
}

fn wrong(text: impl Into<String>) -> Failure {
    Failure::new(USAGE, text)
}

impl Expression {
    /// Parses the words of an expression.
    pub(super) fn parse(words: &[OsString]) -> Result<Self, Failure> {
        let mut all = Self::default();
        let mut wanted = true;
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            let name = word.to_str().unwrap_or("");
            let mut value = || {
                let value = rest.next();
                value.ok_or_else(|| wrong(format!("find: {name} needs an argument")))
            };
            match name {
                "!" | "-not" => {
                    wanted = !wanted;
                    continue;
                }
                "-a" | "-and" | "-print" => continue,
                "-print0" => {
                    all.print0 = true;
                    continue;
                }
                "-maxdepth" => all.max_depth = Some(depth(name, value()?)?),
                "-mindepth" => all.min_depth = depth(name, value()?)?,
                "-empty" => all.tests.push((wanted, Test::Empty)),
                "-name" | "-iname" | "-path" | "-ipath" | "-type" | "-size" | "-mtime"
                | "-mmin" | "-newer" | "-inum" | "-links" | "-uid" | "-gid" | "-perm" => {
                    all.tests.push((wanted, test(name, value()?)?));
                }
                _ => {
                    let word = word.as_encoded_bytes().escape_ascii();
                    return Err(wrong(format!(
                        "find: {word} is not supported: the words of an expression are {KNOWN}"
                    )));
                }
            }
            wanted = true;
        }
        match wanted {
            true => Ok(all),
            false => Err(wrong("find: a test must follow -not")),
        }
    }

    /// Paths of files that `-newer` names, whose times [`Expression::fits`] takes.
    pub(super) fn newer(&self) -> Vec<OsString> {
        let of = |(_, test): &(bool, Test)| match test {
            Test::Newer(path) => Some(path.clone()),
            _ => None,
        };
        self.tests.iter().filter_map(of).collect()
    }

    /// Whether a file passes. `newer` has the times of [`Expression::newer`]; `is_empty` is asked
    /// last.
    pub(super) fn fits<E>(
        &self,
        file: &Candidate<'_>,
        newer: &[Timestamp],
        mut is_empty: impl FnMut() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut times = newer.iter();
        for (wanted, test) in &self.tests {
            let fits = match test {
                Test::Newer(_) => {
                    let time = times.next();
                    time.is_some_and(|time| {
                        let of = |t: Timestamp| (t.seconds, t.nanoseconds);
                        of(file.metadata.mtime) > of(*time)
                    })
                }
                Test::Empty => continue,
                test => test.fits(file),
            };
            if fits != *wanted {
                return Ok(false);
            }
        }
        for (wanted, test) in &self.tests {
            if *test == Test::Empty && is_empty()? != *wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn depth(name: &str, value: &OsString) -> Result<usize, Failure> {
    let number = value.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| wrong(format!("find: {name} needs a number")))
}

fn test(name: &str, value: &OsString) -> Result<Test, Failure> {
    let bytes = value.as_encoded_bytes();
    let text = value.to_str().unwrap_or("");
    let amount = |text: &str, what: &str| {
        Amount::of(text).ok_or_else(|| {
            let given = bytes.escape_ascii();
            wrong(format!(
                "find: {name} {given}: give {what}, with + for more or - for less"
            ))
        })
    };
    let number = || amount(text, "a number");
    Ok(match name {
        "-name" | "-iname" => Test::Name {
            pattern: bytes.to_vec(),
            fold: name == "-iname",
        },
        "-path" | "-ipath" => Test::Path {
            pattern: bytes.to_vec(),
            fold: name == "-ipath",
        },
        "-type" => Test::Type(types(text)?),
        "-size" => {
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit = match &text[digits.len()..] {
                "" | "b" => 512,
                "c" => 1,
                "w" => 2,
                "k" => 1 << 10,
                "M" => 1 << 20,
                "G" => 1 << 30,
                unit => {
                    return Err(wrong(format!(
                        "find: -size: {unit} is not one of c w b k M G"
                    )));
                }
            };
            Test::Size(amount(digits, "a number with c, w, b, k, M or G")?, unit)
        }
        "-mtime" => Test::Modified(number()?, 86_400),
        "-mmin" => Test::Modified(number()?, 60),
        "-newer" => Test::Newer(value.clone()),
        "-inum" => Test::Inode(number()?),
        "-links" => Test::Links(number()?),
        "-uid" => Test::Uid(number()?),
        "-gid" => Test::Gid(number()?),
        _ => {
            // By the text: it is empty where the bytes are not UTF-8.
            let (make, digits): (fn(u32) -> Test, _) = if let Some(rest) = text.strip_prefix('-') {
                (Test::AllOfMode, rest)
            } else if let Some(rest) = text.strip_prefix('/') {
                (Test::AnyOfMode, rest)
            } else {
                (Test::Mode, text)
            };
            let mode = u32::from_str_radix(digits, 8).ok();
            let mode = mode.filter(|mode| *mode <= 0o7777 && !digits.starts_with('+'));
            let given = bytes.escape_ascii();
            make(mode.ok_or_else(|| {
                wrong(format!(
                    "find: -perm {given}: give a mode in octal, -MODE or /MODE"
                ))
            })?)
        }
    })
}

fn types(text: &str) -> Result<Vec<FileType>, Failure> {
    let of = |letter: &str| {
        Ok(match letter {
            "f" => FileType::Regular,
            "d" => FileType::Directory,
            "l" => FileType::Symlink,
            "b" => FileType::BlockDevice,
            "c" => FileType::CharDevice,
            "p" => FileType::Fifo,
            "s" => FileType::Socket,
            other => {
                return Err(wrong(format!(
                    "find: -type: {other} is not one of f d l b c p s"
                )));
            }
        })
    };
    text.split(',').map(of).collect()
}

impl Test {
    fn fits(&self, file: &Candidate<'_>) -> bool {
        let meta = file.metadata;
        match self {
            Self::Name { pattern, fold } => matches(pattern, file.name, *fold),
            Self::Path { pattern, fold } => matches(pattern, file.path, *fold),
            Self::Type(types) => types.contains(&meta.file_type()),
            Self::Size(amount, unit) => amount.fits(meta.len_bytes.div_ceil(*unit)),
            Self::Modified(amount, unit) => {
                let age = file.now.saturating_sub(meta.mtime.seconds);
                // A time in the future counts as now.
                amount.fits(u64::try_from(age).unwrap_or(0) / unit)
            }
            Self::Inode(amount) => amount.fits(meta.ino),
            Self::Links(amount) => amount.fits(meta.nlink.into()),
            Self::Uid(amount) => amount.fits(meta.uid.into()),
            Self::Gid(amount) => amount.fits(meta.gid.into()),
            Self::Mode(mode) => meta.permissions() == *mode,
            Self::AllOfMode(mode) => meta.permissions() & mode == *mode,
            Self::AnyOfMode(mode) => *mode == 0 || meta.permissions() & mode != 0,
            Self::Newer(_) | Self::Empty => true,
        }
    }
}

/// Whether a pattern of the shell matches all of a name: `*`, `?`, `[a-z]`, `[!a-z]`, and a
/// backslash before a literal character. As fnmatch(3) in the C locale, without flags.
fn matches(pattern: &[u8], name: &[u8], fold: bool) -> bool {
    let same = |a: u8, b: u8| {
        if fold {
            a.eq_ignore_ascii_case(&b)
        } else {
            a == b
        }
    };
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last star does not match: one byte more belongs to the
    // star.
    let mut star = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => match bracket(&pattern[p..], name[n], fold) {
                Some((true, len)) => Some(len),
                Some((false, _)) => None,
                // Without an end it stands for itself.
                None => (name[n] == b'[').then_some(1),
            },
            Some(b'\\') if p + 1 < pattern.len() => same(pattern[p + 1], name[n]).then_some(2),
            Some(byte) => same(*byte, name[n]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(len), _) => {
                p += len;
                n += 1;
            }
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                p = after;
                n = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Whether a bracket expression at the start of a pattern matches a byte, and its length.
fn bracket(pattern: &[u8], byte: u8, fold: bool) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let first = if negated { 2 } else { 1 };
    let mut at = first;
    let mut found = false;
    loop {
        let mut low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((found != negated, at + 1));
        }
        if low == b'\\' {
            at += 1;
            low = *pattern.get(at)?;
        }
        let range =
            pattern.get(at + 1) == Some(&b'-') && pattern.get(at + 2).is_some_and(|c| *c != b']');
        let high = if range { *pattern.get(at + 2)? } else { low };
        at += if range { 3 } else { 1 };
        let in_range = |byte: u8| (low..=high).contains(&byte);
        found |= in_range(byte)
            || fold && (in_range(byte.to_ascii_lowercase()) || in_range(byte.to_ascii_uppercase()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn patterns_match_as_the_shells_do() {
        let yes = [
            ("*", ""),
            ("*.c", "a.c"),
            ("a*b*c", "axxbyyc"),
            ("?x", "ax"),
            ("[a-c]z", "bz"),
            ("[!a-c]z", "dz"),
            ("[]x]", "]"),
            ("[a-]", "-"),
            ("\\*", "*"),
            ("[", "["),
            ("*/b", "a/x/b"),
        ];
        for (pattern, name) in yes {
            assert!(
                matches(pattern.as_bytes(), name.as_bytes(), false),
                "{pattern} {name}"
            );
        }
        for (pattern, name) in [
            ("*.c", "a.h"),
            ("a", "A"),
            ("?", ""),
            ("[a-c]", "d"),
            ("a*b", "ac"),
        ] {
            assert!(
                !matches(pattern.as_bytes(), name.as_bytes(), false),
                "{pattern} {name}"
            );
        }
        assert!(matches(b"A[B-C]*", b"abX", true));
        // Stars in a row are no reason to try for ever.
        assert!(!matches(&b"*a".repeat(100), &b"a".repeat(99), false));
    }

    #[test]
    fn unknown_words_and_wrong_values_are_usage() {
        let parse = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            Expression::parse(&words)
        };
        for words in [
            &["-exec"][..],
            &["-o"],
            &["("],
            &["-name"],
            &["-size", "3x"],
            &["-size", "k"],
            &["-type", "q"],
            &["-mtime", "1.5"],
            &["-perm", "u=rw"],
            &["-perm", "99"],
            &["-maxdepth", "-1"],
            &["-not"],
        ] {
            assert_eq!(parse(words).unwrap_err().status(), USAGE, "{words:?}");
        }
        for name in ["-perm", "-size", "-type", "-mtime", "-maxdepth"] {
            for value in [&b"-\xff"[..], b"/\xff", b"+\xff"] {
                let value = OsString::from_vec(value.to_vec());
                let words = [name.into(), value];
                let failure = Expression::parse(&words).unwrap_err();
                assert_eq!(failure.status(), USAGE, "{words:?}");
            }
        }
        let all = parse(&[
            "-type",
            "f,d",
            "!",
            "-size",
            "+1k",
            "-mindepth",
            "2",
            "-print0",
        ])
        .unwrap();
        assert_eq!((all.min_depth, all.print0, all.tests.len()), (2, true, 2));
        assert!(!all.tests[1].0);
    }
}
