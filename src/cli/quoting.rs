//! Names in messages, quoted for the shell as coreutils quote them.

use std::fmt::Write as _;

use crate::bench::terminal::controls_terminal;

/// The name in quotation marks: `'a b'`, `"it's"`, `'a'$'\n''b'`.
pub(super) fn quoted(name: &[u8]) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || " '%+,-./:=@]_{}^".contains(c);
    if let Ok(text) = std::str::from_utf8(name)
        && text.contains('\'')
        && text.chars().all(is_plain)
    {
        return format!("\"{text}\"");
    }
    let mut quoted = Quoted {
        text: String::from("'"),
        in_escapes: false,
    };
    for piece in name.utf8_chunks() {
        for c in piece.valid().chars() {
            if controls_terminal(c) {
                quoted.escape(c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                quoted.plain(c);
            }
        }
        quoted.escape(piece.invalid());
    }
    quoted.text.push('\'');
    quoted.text
}

/// Inside of `'...'`, or of `$'...'` with escapes.
struct Quoted {
    text: String,
    in_escapes: bool,
}

impl Quoted {
    fn plain(&mut self, c: char) {
        if self.in_escapes {
            self.text.push_str("''");
            self.in_escapes = false;
        }
        match c {
            '\'' => self.text.push_str("'\\''"),
            c => self.text.push(c),
        }
    }

    fn escape(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if !self.in_escapes {
                self.text.push_str("'$'");
                self.in_escapes = true;
            }
            match byte {
                7 => self.text.push_str("\\a"),
                8 => self.text.push_str("\\b"),
                b'\t' => self.text.push_str("\\t"),
                b'\n' => self.text.push_str("\\n"),
                11 => self.text.push_str("\\v"),
                12 => self.text.push_str("\\f"),
                b'\r' => self.text.push_str("\\r"),
                byte => {
                    let _ = write!(self.text, "\\{byte:03o}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn names_are_quoted_as_by_coreutils() {
        for (name, text) in [
            (&b"a b"[..], "'a b'"),
            (b"it's", "\"it's\""),
            (b"it's $HOME", "'it'\\''s $HOME'"),
            (b"n\nl", "'n'$'\\n''l'"),
            (b"\xff\x1b", "''$'\\377\\033'"),
            ("grün".as_bytes(), "'grün'"),
        ] {
            assert_eq!(quoted(name), text);
        }
    }
}
