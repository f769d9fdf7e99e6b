//! Modes as chmod(1) has them: octal, or `[ugoa]*([-+=]([rwxXst]*|[ugo]|[0-7]+))+,...`.
//!
//! The crates for this differ from GNU's chmod: `file-mode` panics on `u=r+w` and adds `X` to
//! directories only; `uucore::mode` accepts `644,u+x`, `u+x,` and spaces.

/// All bits that chmod changes.
pub(super) const ALL: u32 = 0o7777;
const SET_IDS: u32 = 0o6000;
const EXECUTE: u32 = 0o111;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModeOperator {
    Set,
    Add,
    Remove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModeValue {
    Bits(u32),
    /// And all execute bits, of a directory or where one is set: `X`.
    BitsAndExecute(u32),
    /// The bits of the owner, the group or others, for all of them. The shift of the bits.
    CopyOf(u32),
}

/// One operation of a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ModeClause {
    operator: ModeOperator,
    value: ModeValue,
    /// The bits of the classes that are named; `None` for all, less the umask.
    who: Option<u32>,
    /// Bits of the value that are named. Of a directory, set-user-ID and set-group-ID change only
    /// when they are.
    named: u32,
}

/// A change of mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModeChange(Vec<ModeClause>);

impl ModeChange {
    /// The change to exactly this mode, as `--reference` makes it.
    pub(super) fn to(mode: u32) -> Self {
        Self(vec![ModeClause {
            operator: ModeOperator::Set,
            value: ModeValue::Bits(mode & ALL),
            who: Some(ALL),
            named: ALL,
        }])
    }

    /// `None` for other text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = octal(text)?;
            // Fewer than five digits leave the set-ID bits of directories alone, unless they set
            // them.
            let named = if text.len() < 5 {
                mode & SET_IDS | (ALL & !SET_IDS)
            } else {
                ALL
            };
            return Some(Self(vec![ModeClause {
                named,
                ..Self::to(mode).0[0]
            }]));
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            let operators = part.find(['=', '+', '-'])?;
            let (who, mut rest) = part.split_at(operators);
            let who = classes(who)?;
            while !rest.is_empty() {
                let (clause, after) = clause(who, rest)?;
                clauses.push(clause);
                rest = after;
            }
        }
        Some(Self(clauses))
    }

    /// The mode that a file gets.
    pub(super) fn apply(&self, mode: u32, is_dir: bool, umask: u32) -> u32 {
        let mut mode = mode & ALL;
        for clause in &self.0 {
            let kept = if is_dir { SET_IDS & !clause.named } else { 0 };
            let value = match clause.value {
                ModeValue::Bits(bits) => bits,
                ModeValue::BitsAndExecute(bits) if is_dir || mode & EXECUTE != 0 => bits | EXECUTE,
                ModeValue::BitsAndExecute(bits) => bits,
                ModeValue::CopyOf(shift) => (mode >> shift & 0o7) * 0o111,
            };
            let value = value & clause.who.unwrap_or(!umask) & !kept;
            mode = match clause.operator {
                ModeOperator::Add => mode | value,
                ModeOperator::Remove => mode & !value,
                ModeOperator::Set => mode & (clause.who.map_or(0, |who| !who) | kept) | value,
            };
        }
        mode
    }
}

/// Up to 7777, with any number of zeroes before.
fn octal(digits: &str) -> Option<u32> {
    let are_octal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(digits, 8).ok()?;
    (are_octal && mode <= ALL).then_some(mode)
}

/// The bits of the classes that letters name.
fn classes(letters: &str) -> Option<Option<u32>> {
    let mut who = 0;
    for letter in letters.chars() {
        who |= match letter {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => ALL,
            _ => return None,
        };
    }
    Some((who != 0).then_some(who))
}

/// One operator with its value, and what follows.
fn clause(who: Option<u32>, text: &str) -> Option<(ModeClause, &str)> {
    let operator = match text.as_bytes()[0] {
        b'=' => ModeOperator::Set,
        b'+' => ModeOperator::Add,
        b'-' => ModeOperator::Remove,
        _ => return None,
    };
    let text = &text[1..];
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        // Without a class, and to the end.
        if who.is_some() {
            return None;
        }
        let clause = ModeClause {
            operator,
            ..ModeChange::to(octal(text)?).0[0]
        };
        return Some((clause, ""));
    }
    let copied = match text.as_bytes().first() {
        Some(b'u') => Some(6),
        Some(b'g') => Some(3),
        Some(b'o') => Some(0),
        _ => None,
    };
    let (value, named, rest) = match copied {
        Some(shift) => (ModeValue::CopyOf(shift), 0o7 << shift, &text[1..]),
        None => bits(text)?,
    };
    let clause = ModeClause {
        operator,
        value,
        who,
        named: named & who.unwrap_or(ALL),
    };
    let is_end = rest.is_empty() || rest.starts_with(['=', '+', '-']);
    is_end.then_some((clause, rest))
}

/// `[rwxXst]*`.
fn bits(text: &str) -> Option<(ModeValue, u32, &str)> {
    let end = text.find(['=', '+', '-']).unwrap_or(text.len());
    let (mut bits, mut execute) = (0, false);
    for letter in text[..end].chars() {
        bits |= match letter {
            'r' => 0o444,
            'w' => 0o222,
            'x' => EXECUTE,
            's' => SET_IDS,
            't' => 0o1000,
            'X' => {
                execute = true;
                0
            }
            _ => return None,
        };
    }
    let value = match execute {
        true => ModeValue::BitsAndExecute(bits),
        false => ModeValue::Bits(bits),
    };
    Some((value, bits, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str, mode: u32) -> u32 {
        ModeChange::parse(text).unwrap().apply(mode, false, 0o022)
    }

    #[test]
    fn octal_and_symbolic_modes_are_applied() {
        for (text, before, after) in [
            ("640", 0o4755, 0o640),
            ("u=rwx,go=rX", 0, 0o755),
            ("g=u-w,o=", 0o644, 0o640),
            ("+w", 0o444, 0o644),
            ("a+w", 0o444, 0o666),
            ("=", 0o7777, 0),
            ("-7", 0o777, 0o770),
            ("ug+s,+t", 0o755, 0o7755),
            ("a+X", 0o644, 0o644),
            ("u+x-x=rw", 0o777, 0o677),
        ] {
            assert_eq!(applied(text, before), after, "{text}");
        }
    }

    #[test]
    fn directories_keep_set_id_bits_that_are_not_named() {
        let applied = |text, mode| ModeChange::parse(text).unwrap().apply(mode, true, 0);
        assert_eq!(applied("755", 0o6700), 0o6755);
        assert_eq!(applied("00755", 0o6700), 0o755);
        assert_eq!(applied("2755", 0o4700), 0o6755);
        assert_eq!(applied("u=rwx", 0o4000), 0o4700);
        assert_eq!(applied("u-s", 0o6700), 0o2700);
        assert_eq!(applied("=755", 0o6700), 0o755);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "", "u", "8", "77777", "u+z", ",", "u+x,", "644,u+x", "u+7", "u+x7", "+7+x", "x",
            "u=gx", "+x ", "0o7", "١",
        ] {
            assert_eq!(ModeChange::parse(text), None, "{text:?}");
        }
    }
}
