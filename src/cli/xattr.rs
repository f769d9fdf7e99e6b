//! `xtent xattr`.

use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};
use xtent::volume::{Io, Metadata, Volume};

use super::failure::{CORRUPT, Failure, Failures, OPERATION};
use super::output::{NameStyle, RawOut, put_name};
use super::{TargetArg, VolumePath, acl};
use crate::bench::terminal::controls_terminal;

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Every attribute is listed, whatever its namespace, as `getfattr -m -` lists them for root. With --json \
    a value that is not UTF-8 comes with its bytes in `value_hex`.",
    after_long_help = "Every attribute is listed, whatever its namespace, as `getfattr -m -` lists them for root. With \
    --json a value that is not UTF-8 comes with its bytes in `value_hex`."
)]
pub(super) struct XattrArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The files
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<VolumePath>,
    /// Print the values too
    #[arg(short, long)]
    dump: bool,
    /// Print only this attribute, with its value, such as user.comment
    #[arg(short, long, value_name = "NAME")]
    name: Option<VolumePath>,
    /// How values are printed [default: text where it is readable, otherwise base64]
    #[arg(short, long, value_name = "FORM")]
    encoding: Option<Encoding>,
    /// Print the access control lists as getfacl does, with numbers for owners
    #[arg(long, conflicts_with_all = ["dump", "name", "encoding"])]
    acl: bool,
    /// Show a symbolic link itself
    #[arg(short = 'h', long)]
    no_dereference: bool,
    /// Print JSON: an array with one object for each file
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Encoding {
    Text,
    Hex,
    Base64,
}

/// An attribute: name and value.
type XattrPair = (Vec<u8>, Vec<u8>);

/// Most bytes of memory for the extended attributes of one file.
const MOST_BYTES: usize = 16 << 20;

/// Bytes of memory that an attribute takes in a list, with what the allocator adds.
pub(super) fn heap_bytes(name: &[u8], value: &[u8]) -> usize {
    const EACH_BYTES: usize = size_of::<XattrPair>() + 2 * 16;
    EACH_BYTES + name.len() + value.len()
}

/// Extended attributes of a file, as many as memory is given to.
pub(super) struct Collected {
    pub(super) list: Vec<XattrPair>,
    /// Attributes beyond the limit.
    pub(super) left_out: u64,
    /// Whether all could be read.
    pub(super) result: xtent::Result<()>,
}

impl Collected {
    /// Reads those that are wanted, by name.
    pub(super) fn read(
        volume: &Volume,
        io: &mut Io,
        metadata: &Metadata,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Self {
        let mut list = Vec::new();
        let mut bytes = 0;
        let mut left_out = 0;
        let result = volume.each_xattr(io, metadata, |name, value| {
            if xtent::internals::sys::interrupted().is_some() {
                return Err(xtent::Error::new(xtent::ErrorKind::System, "interrupted"));
            }
            if !is_wanted(name) {
                return Ok(());
            }
            bytes += heap_bytes(name, value);
            if bytes > MOST_BYTES {
                left_out += 1;
            } else {
                list.push((name.to_vec(), value.to_vec()));
            }
            Ok(())
        });
        Self {
            list,
            left_out,
            result,
        }
    }

    /// That there are more than fit.
    pub(super) fn too_many(&self, path: &dyn Fn() -> Vec<u8>, done: &str) -> Option<Failure> {
        let text = || {
            format!(
                "{}: {} extended attributes beyond {} MiB are not {done}",
                path().escape_ascii(),
                self.left_out,
                MOST_BYTES >> 20
            )
        };
        (self.left_out > 0).then(|| Failure::new(OPERATION, text()))
    }
}

pub(super) fn run(args: &XattrArgs) -> Result<(), Failure> {
    let volume = args.target.open_to_read()?;
    let mut io = volume.io()?;
    let mut out = BufWriter::new(super::output::raw_stdout()?);
    let mut failures = Failures::default();
    let mut objects = Vec::new();
    for path in &args.paths {
        let shown = match look(args, &volume, &mut io, path, &mut failures) {
            Ok((metadata, list)) if args.json => {
                json(args, path, &metadata, &list).map(|object| objects.push(Value::Object(object)))
            }
            Ok((metadata, list)) => print(args, &mut out, path, &metadata, &list),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = shown {
            failures.note(failure)?;
        }
    }
    out.flush()?;
    if args.json {
        super::output::print_json(&Value::Array(objects))?;
    }
    failures.result()
}

fn look(
    args: &XattrArgs,
    volume: &Volume,
    io: &mut Io,
    path: &VolumePath,
    failures: &mut Failures,
) -> Result<(Metadata, Vec<XattrPair>), Failure> {
    let metadata = if args.no_dereference {
        volume.symlink_metadata(io, path)?
    } else {
        volume.metadata(io, path)?
    };
    let wanted = args.name.as_ref().map(|name| name.as_encoded_bytes());
    let found = Collected::read(volume, io, &metadata, |name| {
        wanted.is_none_or(|wanted| wanted == name)
    });
    if let Some(failure) = found.too_many(&|| path.as_encoded_bytes().to_vec(), "shown") {
        failures.note(failure)?;
    }
    found.result?;
    let mut list = found.list;
    if let Some(name) = wanted
        && list.is_empty()
    {
        let path = path.as_encoded_bytes().escape_ascii();
        let text = format!("{path}: there is no attribute {}", name.escape_ascii());
        return Err(Failure::new(OPERATION, text));
    }
    list.sort();
    Ok((metadata, list))
}

fn value_of<'a>(list: &'a [XattrPair], name: &str) -> Option<&'a [u8]> {
    let found = list.iter().find(|(other, _)| other == name.as_bytes());
    found.map(|(_, value)| &value[..])
}

/// The access control lists of a file, as text.
fn acl_text(path: &OsStr, metadata: &Metadata, list: &[XattrPair]) -> Result<String, Failure> {
    let access = value_of(list, "system.posix_acl_access");
    let default = value_of(list, "system.posix_acl_default");
    acl::text(metadata, access, default).ok_or_else(|| {
        let path = path.as_bytes().escape_ascii();
        Failure::new(
            CORRUPT,
            format!("{path}: an access control list that is no list"),
        )
    })
}

fn print(
    args: &XattrArgs,
    out: &mut BufWriter<RawOut>,
    path: &VolumePath,
    metadata: &Metadata,
    list: &[XattrPair],
) -> Result<(), Failure> {
    if list.is_empty() && !args.acl {
        return Ok(());
    }
    let names = NameStyle::for_stdout();
    let acl = match args.acl {
        true => Some(acl_text(path, metadata, list)?),
        false => None,
    };
    out.write_all(b"# file: ")?;
    out.write_all(&names.print(path.as_encoded_bytes()))?;
    out.write_all(b"\n")?;
    if let Some(text) = acl {
        writeln!(out, "{text}")?;
        return Ok(());
    }
    let with_values = args.dump || args.name.is_some();
    for (name, value) in list {
        out.write_all(&names.print(name))?;
        if with_values {
            out.write_all(b"=")?;
            out.write_all(encoded(value, args.encoding).as_bytes())?;
        }
        out.write_all(b"\n")?;
    }
    Ok(out.write_all(b"\n")?)
}

fn json(
    args: &XattrArgs,
    path: &VolumePath,
    metadata: &Metadata,
    list: &[XattrPair],
) -> Result<Map<String, Value>, Failure> {
    let mut object = Map::new();
    put_name(&mut object, "path", path.as_encoded_bytes());
    if args.acl {
        object.insert("acl".into(), acl_text(path, metadata, list)?.into());
        return Ok(object);
    }
    let attributes = list.iter().map(|(name, value)| {
        let mut attribute = Map::new();
        put_name(&mut attribute, "name", name);
        put_name(&mut attribute, "value", value);
        Value::Object(attribute)
    });
    object.insert("attributes".into(), attributes.collect());
    Ok(object)
}

/// A value as getfattr prints it, for setfattr --restore.
fn encoded(value: &[u8], encoding: Option<Encoding>) -> String {
    let readable =
        || std::str::from_utf8(value).is_ok_and(|text| !text.contains(controls_terminal));
    match encoding {
        Some(Encoding::Text) => quoted(value),
        Some(Encoding::Hex) => {
            let digits: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("0x{digits}")
        }
        Some(Encoding::Base64) => format!("0s{}", base64(value)),
        None if readable() => quoted(value),
        None => format!("0s{}", base64(value)),
    }
}

/// In quotation marks, as getfattr prints text. Control characters, and those that change the
/// direction of text, are written in octal, which setfattr reads back.
fn quoted(value: &[u8]) -> String {
    let mut text = String::from("\"");
    for piece in value.utf8_chunks() {
        for c in piece.valid().chars() {
            match c {
                '"' | '\\' => {
                    text.push('\\');
                    text.push(c);
                }
                c if controls_terminal(c) => {
                    let mut bytes = [0; 4];
                    for byte in c.encode_utf8(&mut bytes).bytes() {
                        text.push_str(&format!("\\{byte:03o}"));
                    }
                }
                c => text.push(c),
            }
        }
        for byte in piece.invalid() {
            text.push_str(&format!("\\{byte:03o}"));
        }
    }
    text.push('"');
    text
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at > group.len() { '=' } else { digit.into() });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_forms_of_getfattr() {
        for (value, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(value.as_bytes()), text);
        }
        assert_eq!(encoded(b"a\"\\b", None), r#""a\"\\b""#);
        assert_eq!(encoded(b"\0\xff", None), "0sAP8=");
        assert_eq!(encoded(b"\0\xff", Some(Encoding::Text)), r#""\000\377""#);
        assert_eq!(encoded(b"a\n", Some(Encoding::Hex)), "0x610a");
        // A right-to-left override would change what a terminal shows of the line.
        let reversed = "a\u{202e}b".as_bytes();
        assert_eq!(encoded(reversed, None), "0sYeKArmI=");
        let text = r#""a\342\200\256b""#;
        assert_eq!(encoded(reversed, Some(Encoding::Text)), text);
    }
}
