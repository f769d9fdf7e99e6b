//! Names, modes and times as people and scripts want them.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use serde_json::{Map, Value, json};
use xtent::internals::sys::interrupted;
use xtent::volume::{FileType, Metadata, Timestamp};

use super::failure::Failure;
use crate::bench::calendar::civil;
use crate::bench::terminal::{self, TextOut};

/// Standard output without Rust's line buffer: large writes go straight through.
pub(super) fn raw_stdout() -> io::Result<RawOut> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    Ok(RawOut::of(file))
}

/// Standard output for text: on a terminal, control characters are escaped.
pub(super) fn text_stdout() -> io::Result<TextOut<RawOut>> {
    Ok(TextOut::new(raw_stdout()?, io::stdout().is_terminal()))
}

/// Prints JSON and a newline to standard output.
pub(super) fn print_json(value: &Value) -> io::Result<()> {
    write_json(&mut raw_stdout()?, value)
}

/// Writes JSON and a newline.
pub(super) fn write_json(out: &mut impl Write, value: &Value) -> io::Result<()> {
    let mut value = value.clone();
    match &mut value {
        Value::Array(objects) => objects.iter_mut().for_each(put_version),
        one => put_version(one),
    }
    let text = format!("{value:#}\n");
    out.write_all(terminal::json(&text).as_bytes())?;
    out.flush()
}

/// Adds the version of the schema to an object.
pub(super) fn put_version(value: &mut Value) {
    if let Value::Object(object) = value {
        object.insert("schema_version".into(), SCHEMA_VERSION.into());
    }
}

/// Where results go that are also shown after an interruption: this file, or standard output. The
/// process ends within its grace time where nothing reads it.
pub(super) fn results(file: Option<File>) -> io::Result<TextOut<RawOut>> {
    let is_terminal = file.is_none() && io::stdout().is_terminal();
    let file = match file {
        Some(file) => file,
        None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
    };
    let out = RawOut {
        file,
        also_interrupted: true,
    };
    Ok(TextOut::new(out, is_terminal))
}

/// A descriptor to write to. A signal ends a write that waits for a reader: `write_all` on a file
/// of the standard library would wait again.
#[derive(Debug)]
pub(super) struct RawOut {
    file: File,
    /// Writes go on after the user interrupted.
    also_interrupted: bool,
}

impl RawOut {
    /// To a file, until the user interrupts.
    pub(super) fn of(file: File) -> Self {
        Self {
            file,
            also_interrupted: false,
        }
    }
}

impl Write for RawOut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            // A signal cuts a write short that waits: the rest of it would wait again.
            if !self.also_interrupted && interrupted().is_some() {
                return Err(io::Error::other("interrupted"));
            }
            match self.file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file, in the place of one that is there.
pub(super) fn write_file(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::local("cannot write", path, error))
}

/// How names are printed: as they are into files and pipes, without control characters on a
/// terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct NameStyle {
    escape: bool,
}

impl NameStyle {
    /// As standard output wants it.
    pub(super) fn for_stdout() -> Self {
        Self {
            escape: io::stdout().is_terminal(),
        }
    }

    /// The bytes to print for a name.
    pub(super) fn print(self, name: &[u8]) -> Vec<u8> {
        if self.escape {
            terminal::name(name).into_bytes()
        } else {
            name.to_vec()
        }
    }
}

/// Adds a name to a JSON object without loss: `key` as text, and `key_hex` with the bytes when they
/// are not UTF-8.
pub(super) fn put_name(object: &mut Map<String, Value>, key: &str, name: &[u8]) {
    object.insert(key.into(), String::from_utf8_lossy(name).into());
    if std::str::from_utf8(name).is_err() {
        let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        object.insert(format!("{key}_hex"), hex.into());
    }
}

/// The word for a type.
pub(super) fn type_word(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::BlockDevice => "block special file",
        FileType::CharDevice => "character special file",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

/// `drwxr-xr-x`, with `s`, `S`, `t` and `T` where they belong.
pub(super) fn mode_text(metadata: &Metadata) -> String {
    let letter = metadata.file_type().letter();
    format!("{letter}{}", permissions_text(metadata.mode))
}

/// `rwxr-xr-x`, with `s`, `S`, `t` and `T` where they belong.
pub(super) fn permissions_text(mode: u32) -> String {
    let mut text = String::new();
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    for (index, (bit, with_x, without_x)) in special.into_iter().enumerate() {
        let rwx = mode >> (6 - 3 * index) & 0o7;
        text.push(if rwx & 4 == 0 { '-' } else { 'r' });
        text.push(if rwx & 2 == 0 { '-' } else { 'w' });
        text.push(match (mode & bit != 0, rwx & 1 != 0) {
            (true, true) => with_x,
            (true, false) => without_x,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Major and minor number of a device node, as Linux packs them in `st_rdev`.
pub(super) fn device_numbers(rdev: u64) -> (u32, u32) {
    (libc::major(rdev), libc::minor(rdev))
}

/// `2026-11-21 22:44` in UTC.
pub(super) fn short_time(time: Timestamp) -> String {
    let (year, month, day, hour, minute, _) = civil(time.seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
}

/// `2026-11-21 22:44:14.000000000 +0000`, as coreutils' stat in UTC.
pub(super) fn long_time(time: Timestamp) -> String {
    let (year, month, day, hour, minute, second) = civil(time.seconds);
    let ns = time.nanoseconds;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ns:09} +0000")
}

/// All of it, for scripts.
pub(super) fn metadata_json(metadata: &Metadata) -> Map<String, Value> {
    let time = |t: Timestamp| json!({ "seconds": t.seconds, "nanoseconds": t.nanoseconds });
    let value = json!({
        "type": type_word(metadata.file_type()),
        "ino": metadata.ino,
        "generation": metadata.generation,
        "mode": metadata.mode,
        "permissions": format!("{:04o}", metadata.permissions()),
        "nlink": metadata.nlink,
        "uid": metadata.uid,
        "gid": metadata.gid,
        "project": metadata.project,
        "rdev": metadata.rdev,
        "size": metadata.len_bytes,
        // As st_blocks, which is signed.
        "blocks_512": metadata.blocks_512.cast_signed(),
        "block_size": metadata.block_bytes,
        "atime": time(metadata.atime),
        "mtime": time(metadata.mtime),
        "ctime": time(metadata.ctime),
        "btime": time(metadata.btime),
        "xfs_flags": metadata.xfs_flags,
        "xfs_flags2": metadata.xfs_flags2,
        "extent_size": metadata.extent_size_bytes,
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// How threads wait for the device, from the name that a target's information has for it.
pub(super) fn waiting(name: &str) -> &str {
    match name {
        "poll" => "polling",
        "interrupt" => "interrupts",
        "adaptive" => "polling, then interrupts",
        other => other,
    }
}

/// The thread that runs the embedded controller.
pub(super) fn controller_text(mode: &str) -> &str {
    match mode {
        "inline" => "inline (on the thread that waits)",
        "threaded" => "threaded (on a thread of its own)",
        _ => "none (device)",
    }
}

/// A temperature for people; 0 kelvins is a device's way to say nothing.
pub(super) fn celsius(kelvins: u16) -> String {
    match kelvins {
        0 => "not said".to_owned(),
        kelvins => format!("{} C", i32::from(kelvins) - 273),
    }
}

/// A size as coreutils' `-h` has it: powers of 1024, rounded up, one decimal below 10.
pub(super) fn human_size(bytes: u64) -> String {
    let mut unit = None;
    let mut shift = 0;
    for name in ['K', 'M', 'G', 'T', 'P', 'E'] {
        // Rounding up may make 1024 of the smaller unit.
        if u128::from(bytes).div_ceil(1 << shift) < 1024 {
            break;
        }
        unit = Some(name);
        shift += 10;
    }
    let Some(unit) = unit else {
        return bytes.to_string();
    };
    let tenths = (u128::from(bytes) * 10).div_ceil(1 << shift);
    match tenths {
        0..=99 => format!("{}.{}{unit}", tenths / 10, tenths % 10),
        _ => format!("{}{unit}", tenths.div_ceil(10)),
    }
}

/// The version of the JSON that commands print: a field `schema_version` of the object, or of each
/// object of the array. It grows when a field changes its meaning or goes; new fields do not count.
pub(super) const SCHEMA_VERSION: u32 = 1;

/// Bytes for people.
pub(super) fn size_text(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    crate::bench::hist::bytes_text(bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (-1, "1969-12-31 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (4_107_542_400, "2100-03-01 00:00"),
            (-2_147_483_648, "1901-12-13 20:45"),
            (16_299_260_424, "2486-07-02 20:20"),
        ] {
            let time = Timestamp {
                seconds,
                nanoseconds: 0,
            };
            assert_eq!(short_time(time), text);
        }
    }

    #[test]
    fn names_lose_nothing_in_json_and_nothing_dangerous_reaches_a_terminal() {
        let mut object = Map::new();
        put_name(&mut object, "name", b"a\xff");
        assert_eq!(object["name_hex"], "61ff");
        put_name(&mut object, "path", "grün".as_bytes());
        assert_eq!(object["path"], "grün");
        assert!(!object.contains_key("path_hex"));
        let terminal = NameStyle { escape: true };
        assert_eq!(terminal.print(b"\x1b[2Jx"), b"\\x1b[2Jx");
        assert_eq!(terminal.print("grün".as_bytes()), "grün".as_bytes());
        let pipe = NameStyle { escape: false };
        assert_eq!(pipe.print(b"\x1b\xff"), b"\x1b\xff");
    }
}
