//! The headers of a member of an archive: those of ustar, and before them what they cannot hold, as
//! the records of `pax` (POSIX.1-2008, pax Interchange Format) that GNU tar, bsdtar and star read.

use ::tar::{EntryType, Header};

use super::super::job::Attributes;
use crate::cli::acl;
use crate::cli::failure::{Failure, OPERATION};
use crate::cli::output::device_numbers;

/// Bytes of a block of an archive.
pub(super) const BLOCK_BYTES: usize = 512;
/// Bytes of a name in a header.
const NAME_BYTES: usize = 100;
/// The largest owner, and the largest time and size, of a header: 7 and 11 octal digits.
const MOST_ID: u32 = 0o7_777_777;
const MOST_NUMBER: u64 = 0o77_777_777_777;

/// A member.
pub(super) struct Member<'a> {
    /// Its name; that of a directory ends in a slash.
    pub(super) path: &'a [u8],
    pub(super) kind: EntryType,
    pub(super) attributes: &'a Attributes,
    /// Where a link leads.
    pub(super) link: &'a [u8],
    /// As `st_rdev`.
    pub(super) device: u64,
    /// Bytes that follow in the archive.
    pub(super) size: u64,
    /// The length of a file with holes. A map of its data is then the first part of what follows
    /// (GNU tar's sparse format 1.0).
    pub(super) sparse_len: Option<u64>,
}

impl Member<'_> {
    /// The blocks before the content.
    pub(super) fn headers(&self) -> Result<Vec<u8>, Failure> {
        let records = self.records();
        let mut blocks = Vec::with_capacity(records.len() + 4 * BLOCK_BYTES);
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(records.len() as u64);
            header.set_mode(0o600);
            set_name(&mut header.as_old_mut().name, b"PaxHeaders.0/member");
            header.set_cksum();
            blocks.extend_from_slice(header.as_bytes());
            blocks.extend_from_slice(&records);
            blocks.resize(blocks.len().next_multiple_of(BLOCK_BYTES), 0);
        }
        blocks.extend_from_slice(self.header()?.as_bytes());
        Ok(blocks)
    }

    /// The header: numbers that it cannot hold are 0 in it.
    fn header(&self) -> Result<Header, Failure> {
        let (uid, gid) = self.owners();
        let (seconds, _) = self.attributes.mtime;
        let mtime = u64::try_from(seconds).ok().filter(|&at| at <= MOST_NUMBER);
        let mut header = Header::new_ustar();
        header.set_entry_type(self.kind);
        header.set_mode(self.attributes.mode & 0o7777);
        let id = |id: u32| if id > MOST_ID { 0 } else { u64::from(id) };
        header.set_uid(id(uid));
        header.set_gid(id(gid));
        header.set_mtime(mtime.unwrap_or(0));
        let size = if self.size > MOST_NUMBER {
            0
        } else {
            self.size
        };
        header.set_size(size);
        let (major, minor) = device_numbers(self.device);
        let set = header.set_device_major(major);
        set.and_then(|()| header.set_device_minor(minor))
            .map_err(|error| Failure::new(OPERATION, error.to_string()))?;
        let fields = header.as_old_mut();
        match self.sparse_len {
            // As GNU tar names it for programs that do not know the format.
            Some(_) => {
                let name = self.path.rsplit(|&byte| byte == b'/').next();
                let name = [b"GNUSparseFile.0/", name.unwrap_or_default()].concat();
                set_name(&mut fields.name, &name);
            }
            None => set_name(&mut fields.name, self.path),
        }
        set_name(&mut fields.linkname, self.link);
        header.set_cksum();
        Ok(header)
    }

    fn owners(&self) -> (u32, u32) {
        let archive = self.attributes.archive.as_deref();
        archive.map_or((0, 0), |archive| (archive.uid, archive.gid))
    }

    /// What the header has no place for.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &[u8], value: &[u8]| record(&mut records, key, value);
        match self.sparse_len {
            Some(len) => {
                add(b"GNU.sparse.major", b"1");
                add(b"GNU.sparse.minor", b"0");
                add(b"GNU.sparse.name", self.path);
                add(b"GNU.sparse.realsize", len.to_string().as_bytes());
            }
            None if !fits(self.path) => add(b"path", self.path),
            None => {}
        }
        if !fits(self.link) {
            add(b"linkpath", self.link);
        }
        if self.size > MOST_NUMBER {
            add(b"size", self.size.to_string().as_bytes());
        }
        let (uid, gid) = self.owners();
        for (key, id) in [(&b"uid"[..], uid), (b"gid", gid)] {
            if id > MOST_ID {
                add(key, id.to_string().as_bytes());
            }
        }
        // A hard link has no attributes of its own.
        if self.kind == EntryType::Link {
            return records;
        }
        add(b"atime", time_text(self.attributes.atime).as_bytes());
        let (seconds, nanoseconds) = self.attributes.mtime;
        if nanoseconds != 0 || !u64::try_from(seconds).is_ok_and(|at| at <= MOST_NUMBER) {
            add(b"mtime", time_text(self.attributes.mtime).as_bytes());
        }
        let xattrs = self.attributes.archive.iter().flat_map(|a| &a.xattrs);
        for (name, value) in xattrs {
            let list = match name.as_slice() {
                b"system.posix_acl_access" => Some(&b"SCHILY.acl.access"[..]),
                b"system.posix_acl_default" => Some(&b"SCHILY.acl.default"[..]),
                // The same lists, as XFS has them on disk.
                b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT" => continue,
                _ => None,
            };
            // As text too: `tar --acls` reads that.
            if let Some(key) = list
                && let Some(text) = acl::short_text(value)
            {
                add(key, text.as_bytes());
            }
            add(&xattr_key(name), value);
        }
        records
    }
}

/// Whether a header takes a name: 100 bytes, of which each means the same everywhere.
fn fits(name: &[u8]) -> bool {
    name.len() <= NAME_BYTES && name.is_ascii()
}

fn set_name(field: &mut [u8; NAME_BYTES], name: &[u8]) {
    let n = name.len().min(field.len());
    field[..n].copy_from_slice(&name[..n]);
}

/// The key of an attribute. A `=` would end it: GNU tar writes it so (xattr_encode_keyword()).
fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for &byte in name {
        match byte {
            b'%' => key.extend_from_slice(b"%25"),
            b'=' => key.extend_from_slice(b"%3D"),
            byte => key.push(byte),
        }
    }
    key
}

/// Adds a record: its length in decimal digits, which counts itself, a space, `key=value` and a
/// newline.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + decimal_digits(rest as u64);
    // The sum may have one digit more.
    len = rest + decimal_digits(len as u64);
    records.extend_from_slice(len.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

pub(super) fn decimal_digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Seconds as a decimal fraction. Before 1970 the fraction counts backwards, too.
fn time_text((seconds, nanoseconds): (i64, u32)) -> String {
    let ns = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if ns < 0 { "-" } else { "" };
    let ns = ns.unsigned_abs();
    let (whole, part) = (ns / 1_000_000_000, ns % 1_000_000_000);
    match part {
        0 => format!("{sign}{whole}"),
        part => format!("{sign}{whole}.{part:09}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for value_len in 0..2000 {
            let mut records = Vec::new();
            record(&mut records, b"path", &vec![b'x'; value_len]);
            let (len, _) = records.split_at(records.iter().position(|&b| b == b' ').unwrap());
            let len: usize = std::str::from_utf8(len).unwrap().parse().unwrap();
            assert_eq!(len, records.len());
        }
    }

    #[test]
    fn times_before_1970_count_backwards() {
        assert_eq!(time_text((-1, 987_654_321)), "-0.012345679");
        assert_eq!(time_text((-2, 0)), "-2");
        assert_eq!(time_text((1, 5)), "1.000000005");
        assert_eq!(time_text((0, 0)), "0");
    }

    #[test]
    fn keys_of_attributes_have_no_equals_sign() {
        assert_eq!(xattr_key(b"user.a=b%"), b"SCHILY.xattr.user.a%3Db%25");
    }
}
