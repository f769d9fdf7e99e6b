//! The directories on the way down a tree of the host, of which few are open at a time.

use std::io;

use super::hostdir::HostDir;

/// Directories that stay open above the current one.
const OPEN_ABOVE: usize = 8;

/// A directory of the host and those above it, down from where the walk began.
///
/// Any depth needs the same number of descriptors: a directory that was closed is opened again as
/// the parent (`..`) of the one below, and must then be the same directory.
#[derive(Debug)]
pub struct HostPath {
    here: HostDir,
    above: Vec<Above>,
}

#[derive(Debug)]
struct Above {
    /// `None` while it is closed.
    dir: Option<HostDir>,
    /// Device and inode number.
    identity: (u64, u64),
}

impl HostPath {
    /// Begins in this directory.
    pub fn new(here: HostDir) -> Self {
        Self {
            here,
            above: Vec::new(),
        }
    }

    /// The current directory.
    pub fn here(&self) -> &HostDir {
        &self.here
    }

    /// Goes down into the directory `name`; a symbolic link of that name is an error.
    ///
    /// # Errors
    /// The errno of `openat`; the current directory is then still the same.
    pub fn down(&mut self, name: &[u8]) -> io::Result<()> {
        let identity = self.here.identity()?;
        let below = self.here.open_dir(name)?;
        self.above.push(Above {
            dir: Some(std::mem::replace(&mut self.here, below)),
            identity,
        });
        let closed = self.above.len().checked_sub(OPEN_ABOVE + 1);
        if let Some(above) = closed.and_then(|index| self.above.get_mut(index)) {
            above.dir = None;
        }
        Ok(())
    }

    /// Goes up again; the directory that was left. `None` where the walk began.
    ///
    /// # Errors
    /// `openat`'s; an error of its own when the directory has been moved meanwhile.
    pub fn up(&mut self) -> io::Result<Option<HostDir>> {
        let Some(above) = self.above.pop() else {
            return Ok(None);
        };
        let dir = match above.dir {
            Some(dir) => dir,
            None => {
                let parent = self.here.open_parent()?;
                if parent.identity()? != above.identity {
                    return Err(io::Error::other("the directory was moved meanwhile"));
                }
                parent
            }
        };
        Ok(Some(std::mem::replace(&mut self.here, dir)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_open_and_each_is_found_again() {
        let place = tempfile::tempdir().unwrap();
        let mut path = HostPath::new(HostDir::open(place.path()).unwrap());
        let mut identities = Vec::new();
        for _ in 0..100 {
            identities.push(path.here().identity().unwrap());
            path.here().make_dir(b"d").unwrap();
            path.down(b"d").unwrap();
            let open = path.above.iter().filter(|above| above.dir.is_some());
            assert!(open.count() <= OPEN_ABOVE);
        }
        while let Some(identity) = identities.pop() {
            assert!(path.up().unwrap().is_some());
            assert_eq!(path.here().identity().unwrap(), identity);
        }
        assert!(path.up().unwrap().is_none());
    }

    #[test]
    fn a_directory_that_was_moved_is_not_taken_for_its_parent() {
        let place = tempfile::tempdir().unwrap();
        let mut path = HostPath::new(HostDir::open(place.path()).unwrap());
        for _ in 0..20 {
            path.here().make_dir(b"d").unwrap();
            path.down(b"d").unwrap();
        }
        let deep = |depth| place.path().join(["d"; 20][..depth].join("/"));
        std::fs::rename(deep(10), place.path().join("elsewhere")).unwrap();
        let ended = std::iter::repeat_with(|| path.up())
            .take(20)
            .find(|result| result.is_err());
        assert!(ended.is_some());
    }
}
