//! The first names of files that have several. The names of directories are kept once, whatever
//! their depth.

use std::collections::HashMap;

/// A directory that first names lie in: that above it, and its name.
type LinkPlace = (Option<usize>, Vec<u8>);

#[derive(Debug, Default)]
pub(super) struct Links {
    places: Vec<LinkPlace>,
    of: HashMap<u64, First>,
}

#[derive(Debug)]
struct First {
    place: Option<usize>,
    name: Vec<u8>,
    /// Names that were not met yet.
    left: u32,
}

impl Links {
    /// Adds a directory.
    pub(super) fn add_place(&mut self, above: Option<usize>, name: &[u8]) -> usize {
        self.places.push((above, name.to_vec()));
        self.places.len() - 1
    }

    /// Keeps the first name of a file with `nlink` of them.
    pub(super) fn keep(&mut self, ino: u64, nlink: u32, place: Option<usize>, name: &[u8]) {
        let left = nlink.saturating_sub(1);
        let name = name.to_vec();
        self.of.insert(ino, First { place, name, left });
    }

    /// The path of the first name; it is forgotten with the last one.
    pub(super) fn first(&mut self, ino: u64) -> Option<Vec<u8>> {
        let first = self.of.get_mut(&ino)?;
        first.left = first.left.saturating_sub(1);
        let mut names = vec![&first.name];
        let mut next = first.place;
        while let Some((above, name)) = next.and_then(|place| self.places.get(place)) {
            names.push(name);
            next = *above;
        }
        names.reverse();
        let names: Vec<&[u8]> = names.into_iter().map(Vec::as_slice).collect();
        let path = names.join(&b'/');
        if first.left == 0 {
            self.of.remove(&ino);
        }
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_name_is_kept_until_the_last_one() {
        let mut links = Links::default();
        let top = links.add_place(None, b".");
        let below = links.add_place(Some(top), b"below");
        links.keep(7, 3, Some(below), b"file");
        links.keep(8, 2, None, b"alone");
        assert_eq!(links.first(7).unwrap(), b"./below/file");
        assert_eq!(links.first(7).unwrap(), b"./below/file");
        assert_eq!(links.first(7), None);
        assert_eq!(links.first(8).unwrap(), b"alone");
        assert_eq!(links.first(9), None);
    }
}
