//! Text for terminals: what a disk, a device or a server names must not control the terminal.
//!
//! Escaped are C0 and C1 control characters (ECMA-48), DEL, line and paragraph separators, and the
//! characters that reorder text (Unicode bidirectional controls).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Whether a character may change what a terminal shows around it.
pub(crate) fn controls_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{feff}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with every unsafe character escaped: `\n`, `\x1b`, `\u{202e}`.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    escape_unless(text, |_| false)
}

fn escape_unless(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_escaped = |c: char| controls_terminal(c) && !keep(c);
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c if c.is_ascii() => {
                let _ = write!(escaped, "\\x{:02x}", u32::from(c));
            }
            c => escaped.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(escaped)
}

/// A name for people: the text that it is, or, with unsafe characters or bytes that are not UTF-8
/// in it, all of it in ASCII with escapes.
pub(crate) fn name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(controls_terminal) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// JSON with the unsafe characters inside of its strings as `\uXXXX`: the same value, safe to show.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| controls_terminal(c) && c != '\n';
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            // All of them are in the basic plane: one unit of UTF-16.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Text for people, line by line; on a terminal nothing unsafe passes.
#[derive(Debug)]
pub(crate) struct TextOut<W: Write> {
    to: W,
    is_terminal: bool,
    line: Vec<u8>,
}

impl<W: Write> TextOut<W> {
    pub(crate) fn new(to: W, is_terminal: bool) -> Self {
        let line = Vec::new();
        Self {
            to,
            is_terminal,
            line,
        }
    }

    fn pass(&mut self, len: usize) -> io::Result<()> {
        let whole: Vec<u8> = self.line.drain(..len).collect();
        if !self.is_terminal {
            return self.to.write_all(&whole);
        }
        let text = String::from_utf8_lossy(&whole);
        let text = escape_unless(&text, |c| c == '\n' || c == '\t');
        self.to.write_all(text.as_bytes())
    }
}

impl<W: Write> Write for TextOut<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if let Some(end) = self.line.iter().rposition(|&byte| byte == b'\n') {
            self.pass(end + 1)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass(self.line.len())?;
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b]0;t\x07\r\u{9b}31m\x7f\u{202e}\u{2028}\u{2066}grün\n";

    #[test]
    fn nothing_unsafe_passes_and_the_rest_stays() {
        let escaped = escape(HOSTILE);
        assert!(!escaped.chars().any(controls_terminal), "{escaped}");
        assert!(escaped.starts_with("a\\x1b]0;t\\x07\\r\\u{9b}31m\\x7f\\u{202e}"));
        assert!(escaped.ends_with("grün\\n"));
        assert_eq!(escape("grün"), "grün");
        assert_eq!(name("grün".as_bytes()), "grün");
        assert_eq!(name(b"\x1b\xff"), "\\x1b\\xff");
        assert_eq!(name("\u{202e}gpj.exe".as_bytes()), "\\xe2\\x80\\xaegpj.exe");
    }

    #[test]
    fn json_is_the_same_value() {
        let value = serde_json::json!({ "name": HOSTILE });
        let text = format!("{value:#}");
        let safe = json(&text);
        assert!(
            !safe.chars().any(|c| controls_terminal(c) && c != '\n'),
            "{safe}"
        );
        let again: serde_json::Value = serde_json::from_str(&safe).unwrap();
        assert_eq!(again, value);
    }

    #[test]
    fn a_terminal_gets_lines_without_controls() {
        let print = |is_terminal| {
            let mut out = TextOut::new(Vec::new(), is_terminal);
            // A character in two writes.
            out.write_all(b"label \xc2").unwrap();
            out.write_all(b"\x9b \x1b[5m\n").unwrap();
            out.flush().unwrap();
            out.to
        };
        assert_eq!(print(true), b"label \\u{9b} \\x1b[5m\n");
        assert_eq!(print(false), b"label \xc2\x9b \x1b[5m\n");
    }
}
