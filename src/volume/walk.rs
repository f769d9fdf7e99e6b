//! From a path to an inode.

use super::{Io, Volume};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::{Fs, Ino, Inode, InodeType, dir, symlink};

/// Symbolic links that one walk may follow, as in the kernel.
const MAX_LINKS: u32 = 40;
/// Longest path in bytes: the kernel's `PATH_MAX`, without the NUL.
const MAX_PATH_BYTES: usize = 4095;

/// The inode that `path` leads to, from the root. Whether the last component is followed when it is
/// a symbolic link is the caller's to say; a slash behind it has it followed in any case.
pub(super) fn resolve(
    volume: &Volume,
    io: &mut Io,
    path: &[u8],
    follow: bool,
    operation: &'static str,
) -> Result<Inode> {
    let shared = &volume.shared;
    io.check_volume(shared)
        .and_then(|()| walk(&shared.fs, io, path, follow))
        .map_err(|error| shared.explain(error, operation, path))
}

fn walk(fs: &Fs, io: &mut Io, path: &[u8], follow: bool) -> Result<Inode> {
    check(path)?;
    // The components still to be walked, last one first.
    let mut rest = components(path);
    let mut links = 0;
    // The directories above `here`: `..` leads back through them, and never above the root.
    let mut above: Vec<Ino> = Vec::new();
    let mut here = fs.read_root(&mut io.core)?;
    while let Some(name) = rest.pop() {
        if here.file_type != InodeType::Directory {
            return Err(not_a_directory());
        }
        if name == b"." {
            continue;
        }
        if name == b".." {
            if let Some(parent) = above.pop() {
                here = fs.read_inode(&mut io.core, parent)?;
            }
            continue;
        }
        let found = dir::lookup(fs, &mut io.core, &here, &name)?;
        let (ino, _) = found.ok_or_else(not_found)?;
        let inode = fs.read_inode(&mut io.core, ino)?;
        let last = rest.is_empty();
        if inode.file_type == InodeType::Symlink && (!last || follow) {
            links += 1;
            if links > MAX_LINKS {
                return Err(too_many_links());
            }
            let to = symlink::read_link(fs, &mut io.core, &inode)?;
            if to.starts_with(b"/") {
                above.clear();
                here = fs.read_root(&mut io.core)?;
            }
            rest.extend(components(&to));
            continue;
        }
        if inode.file_type == InodeType::Directory {
            dir::check_parent(fs, &mut io.core, &inode, here.ino)?;
            above.push(here.ino);
        }
        here = inode;
    }
    Ok(here)
}

fn check(path: &[u8]) -> Result<()> {
    if path.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "the path is empty"));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(Error::new(
            ErrorKind::NameTooLong,
            format!(
                "the path has {} bytes; the most is {MAX_PATH_BYTES}",
                path.len()
            ),
        ));
    }
    if path.contains(&0) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a path cannot contain NUL",
        ));
    }
    Ok(())
}

/// The components, last one first. A slash at the end stands for `.`, which only a directory has:
/// `file/` and `file/.` are ENOTDIR, and a symbolic link before it is followed
/// (path_resolution(7)).
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let last_slash = path.ends_with(b"/").then(|| b".".to_vec());
    let names = path.rsplit(|&byte| byte == b'/');
    let names = names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec);
    last_slash.into_iter().chain(names).collect()
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "no such file or directory")
}

fn not_a_directory() -> Error {
    Error::new(
        ErrorKind::NotADirectory,
        "a component of the path is not a directory",
    )
}

fn too_many_links() -> Error {
    Error::new(
        ErrorKind::TooManyLinks,
        format!("more than {MAX_LINKS} symbolic links on the way"),
    )
}
