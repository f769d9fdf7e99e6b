//! Short-form directories: those that lie in their inode.
//!
//! Layer 0. Follows "Short Form Directories" of the XFS Algorithms & Data Structures document, with
//! the file type in each entry. Input is hostile; errors are
//! [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) without an address, which the reader of the
//! inode adds.

use zerocopy::FromBytes;
use zerocopy::big_endian::{U16, U32, U64};

use super::dir::{DATA_ALIGN, DOT_DOT_OFFSET, EntryType, corrupt, data_entry_bytes, name_is_valid};
use crate::error::Result;

/// One name of a short-form directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirShortEntry<'a> {
    /// Inode number, unchecked.
    pub ino: u64,
    /// The name.
    pub name: &'a [u8],
    /// What it names.
    pub file_type: EntryType,
    /// Where the entry would lie in a single-block directory, in bytes: its cookie.
    pub offset: u16,
}

/// A short-form directory: everything inside the inode.
///
/// ```text
/// count u8 | count of 64-bit inode numbers u8 | parent u32 or u64 |
///     { length u8 | offset u16 | name | type u8 | inode number u32 or u64 } ...
/// ```
/// Inode numbers are all 64 bits wide as soon as one needs it.
#[derive(Debug, Clone, Copy)]
pub struct ShortForm<'a> {
    /// Inode number of `..`, unchecked.
    pub parent: u64,
    entries: &'a [u8],
    count: u8,
    wide: bool,
}

impl<'a> ShortForm<'a> {
    /// Parses and checks a data fork of local format, cut to the directory's size.
    ///
    /// # Errors
    /// Corrupt.
    pub fn parse(fork: &'a [u8]) -> Result<Self> {
        let cut_off = || corrupt("a short directory that is cut off");
        let [count, wide_count, rest @ ..] = fork else {
            return Err(cut_off());
        };
        let wide = *wide_count != 0;
        let (parent, entries) = split_ino(rest, wide).ok_or_else(cut_off)?;
        let form = Self {
            parent,
            entries,
            count: *count,
            wide,
        };
        let mut walk = form.entries();
        let mut wide_found = usize::from(u32::try_from(parent).is_err());
        let mut least_offset = u16::try_from(DOT_DOT_OFFSET)
            .unwrap_or(u16::MAX)
            .saturating_add(16);
        for entry in &mut walk {
            let entry = entry?;
            wide_found = wide_found.saturating_add(usize::from(u32::try_from(entry.ino).is_err()));
            if entry.offset < least_offset || !usize::from(entry.offset).is_multiple_of(DATA_ALIGN)
            {
                return Err(corrupt("a short directory whose offsets are out of order"));
            }
            let length = u16::try_from(data_entry_bytes(entry.name.len())).unwrap_or(u16::MAX);
            least_offset = entry.offset.saturating_add(length);
        }
        if !walk.rest.is_empty() {
            return Err(corrupt(
                "a short directory with bytes behind its last entry",
            ));
        }
        if wide_found != usize::from(*wide_count) {
            return Err(corrupt(format!(
                "a short directory that counts {wide_count} 64-bit inode numbers and has {wide_found}"
            )));
        }
        Ok(form)
    }

    /// The entries in the order of their offsets, without `.` and `..`.
    pub fn entries(&self) -> ShortEntries<'a> {
        ShortEntries {
            rest: self.entries,
            left: self.count,
            wide: self.wide,
        }
    }
}

fn split_ino(bytes: &[u8], wide: bool) -> Option<(u64, &[u8])> {
    if wide {
        let (ino, rest) = U64::ref_from_prefix(bytes).ok()?;
        Some((ino.get(), rest))
    } else {
        let (ino, rest) = U32::ref_from_prefix(bytes).ok()?;
        Some((u64::from(ino.get()), rest))
    }
}

/// Iterates a short-form directory.
#[derive(Debug, Clone)]
pub struct ShortEntries<'a> {
    rest: &'a [u8],
    left: u8,
    wide: bool,
}

impl<'a> ShortEntries<'a> {
    fn split(&self) -> Option<(DirShortEntry<'a>, &'a [u8])> {
        let (&name_bytes, rest) = self.rest.split_first()?;
        let (offset, rest) = U16::ref_from_prefix(rest).ok()?;
        let (name, rest) = rest.split_at_checked(usize::from(name_bytes))?;
        let (&file_type, rest) = rest.split_first()?;
        let (ino, rest) = split_ino(rest, self.wide)?;
        let file_type = EntryType::from_disk(file_type)?;
        let entry = DirShortEntry {
            ino,
            name,
            file_type,
            offset: offset.get(),
        };
        name_is_valid(name).then_some((entry, rest))
    }
}

impl<'a> Iterator for ShortEntries<'a> {
    type Item = Result<DirShortEntry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        match self.split() {
            Some((entry, rest)) => {
                self.rest = rest;
                Some(Ok(entry))
            }
            None => {
                self.left = 0;
                Some(Err(corrupt(
                    "a short directory with an entry that is cut off, of no name or of no type",
                )))
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "test data of known size")]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn short(wide_count: u8, parent: &[u8], entries: &[(u16, &[u8], u8, &[u8])]) -> Vec<u8> {
        let mut fork = vec![u8::try_from(entries.len()).unwrap(), wide_count];
        fork.extend_from_slice(parent);
        for (offset, name, file_type, ino) in entries {
            fork.push(u8::try_from(name.len()).unwrap());
            fork.extend_from_slice(&offset.to_be_bytes());
            fork.extend_from_slice(name);
            fork.push(*file_type);
            fork.extend_from_slice(ino);
        }
        fork
    }

    #[test]
    fn short_form_of_both_widths() {
        let narrow = short(
            0,
            &[0, 0, 0, 128],
            &[
                (96, b"a\xff", 1, &[0, 0, 1, 2]),
                (112, b"b", 2, &[0, 0, 0, 9]),
            ],
        );
        let form = ShortForm::parse(&narrow).unwrap();
        assert_eq!(form.parent, 128);
        let entries: Vec<_> = form.entries().map(Result::unwrap).collect();
        assert_eq!(entries[0].name, b"a\xff");
        assert_eq!((entries[0].ino, entries[0].offset), (258, 96));
        assert_eq!(
            (entries[1].ino, entries[1].file_type),
            (9, EntryType::Directory)
        );

        let wide = short(
            1,
            &[0, 0, 0, 0, 0, 0, 0, 128],
            &[(96, b"a", 7, &[0, 0, 0, 1, 0, 0, 0, 0])],
        );
        let form = ShortForm::parse(&wide).unwrap();
        assert_eq!(form.entries().next().unwrap().unwrap().ino, 1 << 32);
    }

    #[test]
    fn short_form_cut_anywhere_is_corrupt() {
        let fork = short(
            0,
            &[0, 0, 0, 128],
            &[(96, b"ab", 1, &[0, 0, 1, 2]), (112, b"c", 2, &[0, 0, 0, 9])],
        );
        assert!(ShortForm::parse(&fork).is_ok());
        for length in 0..fork.len() {
            let error = ShortForm::parse(&fork[..length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length} bytes");
        }
        let mut longer = fork.clone();
        longer.push(0);
        assert!(
            ShortForm::parse(&longer).is_err(),
            "bytes behind the last entry"
        );
    }

    #[test]
    fn short_form_contradictions_are_corrupt() {
        let parent = [0, 0, 0, 128];
        let ino: &[u8] = &[0, 0, 0, 9];
        for (what, fork) in [
            ("slash", short(0, &parent, &[(96, b"a/b", 1, ino)])),
            ("no name", short(0, &parent, &[(96, b"", 1, ino)])),
            ("no such type", short(0, &parent, &[(96, b"a", 9, ino)])),
            (
                "order",
                short(0, &parent, &[(112, b"a", 1, ino), (96, b"b", 1, ino)]),
            ),
            ("offset of ..", short(0, &parent, &[(80, b"a", 1, ino)])),
            (
                "wide count",
                short(
                    1,
                    &[0, 0, 0, 0, 0, 0, 0, 128],
                    &[(96, b"a", 1, &[0, 0, 0, 0, 0, 0, 0, 9])],
                ),
            ),
        ] {
            assert!(ShortForm::parse(&fork).is_err(), "{what}");
        }
    }
}
