//! Walking down a tree that may be hostile.

use super::failure::{CORRUPT, Failure};

/// Deeper than any path the kernel can name (4096 bytes, two a level).
const MAX_DEPTH: usize = 2048;

/// The directories on the way down: one that holds itself is refused.
#[derive(Debug, Default)]
pub(super) struct Ancestors {
    inodes: Vec<u64>,
}

impl Ancestors {
    /// Goes down into the directory with this inode number.
    pub(super) fn enter(&mut self, ino: u64, path: &[u8]) -> Result<(), Failure> {
        let wrong = if self.inodes.contains(&ino) {
            "the directory holds itself"
        } else if self.inodes.len() >= MAX_DEPTH {
            "directories are nested too deep"
        } else {
            self.inodes.push(ino);
            return Ok(());
        };
        Err(Failure::new(
            CORRUPT,
            format!("{}: {wrong}", path.escape_ascii()),
        ))
    }

    /// Comes back up from what was entered last.
    pub(super) fn leave(&mut self) {
        self.inodes.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_itself_and_endless_depth_are_refused() {
        let mut ancestors = Ancestors::default();
        ancestors.enter(1, b"/").unwrap();
        ancestors.enter(2, b"/a").unwrap();
        assert_eq!(ancestors.enter(1, b"/a/b").unwrap_err().status(), CORRUPT);
        ancestors.leave();
        ancestors.enter(2, b"/b").unwrap();
        for ino in 3..=2048 {
            ancestors.enter(ino, b"/b/c").unwrap();
        }
        assert!(ancestors.enter(4000, b"/b/d").is_err());
    }
}
