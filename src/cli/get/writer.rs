//! Making files, directories and links on the host.
//!
//! Everything is made relative to directories that are held open. Files are made under a temporary
//! name, and renamed when they are whole: no name on the disk leads outside, and nothing
//! half-written has its final name.

use std::collections::HashMap;
use std::fs::File as HostFile;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xtent::internals::sys::{HostDir, HostNode, HostPath, umask};

use super::SharedFailures;
use super::apply::{CopyTarget, LostAttributes};
use super::job::{Attributes, CopyJob, Entered};
use crate::cli::failure::{Failure, OPERATION};

/// Writes what it is told below one directory.
pub(super) struct Writer {
    path: HostPath,
    /// Where `path` begins.
    base: HostDir,
    force: bool,
    umask: u32,
    /// New files in the base inherit an access control list.
    base_inherits_acl: bool,
    levels: Vec<WriterLevel>,
    /// Directories entered inside of one that could not be made, and that one.
    refused_levels: usize,
    refused_file: Arc<AtomicU64>,
    current: Option<Current>,
    failures: SharedFailures,
    pub(super) lost: LostAttributes,
    links: HashMap<u64, Made>,
    /// Directories that `links` names, with those above them: the place of the one above, and the
    /// name.
    places: Vec<(Option<usize>, Vec<u8>)>,
    part_names: String,
    parts: u64,
}

struct WriterLevel {
    name: Vec<u8>,
    /// Made by this process.
    is_new: bool,
    /// New files in it inherit an access control list.
    inherits_acl: bool,
    /// Its place in `places`, when it is there.
    place: Option<usize>,
}

/// A file that comes in pieces.
struct Current {
    /// As in [`CopyJob::Begin`].
    id: u64,
    part: Vec<u8>,
    name: Vec<u8>,
    file: HostFile,
}

/// A copy that may get more names.
struct Made {
    dir: Option<usize>,
    name: Vec<u8>,
    identity: (u64, u64),
}

fn local(name: &[u8], what: &str, error: io::Error) -> Failure {
    Failure::local(what, Path::new(std::ffi::OsStr::from_bytes(name)), error)
}

/// The path of an entry of the current directory, from where the copy begins.
fn path_below(levels: &[WriterLevel], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    for level in levels {
        path.extend_from_slice(&level.name);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

impl Writer {
    pub(super) fn new(dir: HostDir, force: bool, failures: SharedFailures) -> io::Result<Self> {
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .subsec_nanos();
        Ok(Self {
            base: dir.try_clone()?,
            base_inherits_acl: dir.has_default_acl(),
            path: HostPath::new(dir),
            force,
            umask: umask(),
            levels: Vec::new(),
            refused_levels: 0,
            refused_file: Arc::default(),
            current: None,
            failures,
            lost: LostAttributes::default(),
            links: HashMap::new(),
            places: Vec::new(),
            part_names: format!(".xtent-part-{}-{clock}-", std::process::id()),
            parts: 0,
        })
    }

    /// Where the number of a file in pieces is put that is not wanted any more.
    pub(super) fn refused_file(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.refused_file)
    }

    /// Does one thing. What fails is noted; an error is the end.
    pub(super) fn handle(&mut self, job: CopyJob) -> Result<(), Failure> {
        if self.refused_levels > 0 {
            return self.ignore(job);
        }
        let done = match job {
            CopyJob::Enter(name) => self.enter(&name).map(drop),
            CopyJob::AskEnter(name, answer) => {
                let result = self.enter(&name);
                let entered = *result.as_ref().unwrap_or(&Entered::Refused);
                let _ = answer.send(entered);
                if result.is_err() {
                    // The one who asked does not come in.
                    self.refused_levels = 0;
                }
                result.map(drop)
            }
            CopyJob::Leave(attributes) => self.leave(&attributes),
            CopyJob::Whole {
                name,
                data,
                len_bytes,
                attributes,
            } => self.whole(&name, &data, len_bytes, &attributes),
            CopyJob::Begin {
                name,
                len_bytes,
                id,
            } => self.begin(name, len_bytes, id).inspect_err(|_| {
                self.refused_file.store(id, Ordering::Relaxed);
            }),
            CopyJob::Data { at, data } => self.data(at, &data),
            CopyJob::End(attributes) => self.end(&attributes),
            CopyJob::Abandon => {
                self.abandon();
                Ok(())
            }
            CopyJob::Symlink {
                name,
                target,
                attributes,
            } => self.make(&name, &attributes, |dir, part| {
                dir.make_symlink(&target, part)
            }),
            CopyJob::Node {
                name,
                file_type,
                device,
                attributes,
            } => self.node(&name, file_type, device, &attributes),
            CopyJob::AskLink { name, ino, done } => {
                let linked = self.link(&name, ino);
                let _ = done.send(*linked.as_ref().unwrap_or(&true));
                linked.map(drop)
            }
        };
        match done {
            Ok(()) => Ok(()),
            Err(failure) => self.failures.note(failure),
        }
    }

    /// Inside of a directory that could not be made.
    fn ignore(&mut self, job: CopyJob) -> Result<(), Failure> {
        match job {
            CopyJob::Enter(_) => self.refused_levels += 1,
            CopyJob::AskEnter(_, answer) => drop(answer.send(Entered::Refused)),
            CopyJob::Leave(_) => self.refused_levels -= 1,
            CopyJob::AskLink { done, .. } => drop(done.send(true)),
            CopyJob::Begin { id, .. } => self.refused_file.store(id, Ordering::Relaxed),
            _ => {}
        }
        Ok(())
    }

    fn is_new(&self) -> bool {
        self.levels.last().is_some_and(|level| level.is_new)
    }

    /// Whether new files in the current directory inherit an access control list.
    fn inherits_acl(&self) -> bool {
        let level = self.levels.last();
        level.map_or(self.base_inherits_acl, |level| level.inherits_acl)
    }

    /// A name that nothing of the disk will have.
    fn part_name(&mut self) -> Vec<u8> {
        self.parts += 1;
        format!("{}{}", self.part_names, self.parts).into_bytes()
    }

    fn enter(&mut self, name: &[u8]) -> Result<Entered, Failure> {
        // Until it is made nothing below it is.
        self.refused_levels = 1;
        let failed = |error| local(name, "cannot make the directory", error);
        let entered = match self.path.here().make_dir(name) {
            Err(error) if self.force && error.kind() == io::ErrorKind::AlreadyExists => {
                Entered::Existing
            }
            other => other.map(|()| Entered::New).map_err(failed)?,
        };
        self.path.down(name).map_err(failed)?;
        self.refused_levels = 0;
        let is_new = entered == Entered::New;
        // A new directory inherits the default list; an existing one has its own, or none.
        let may_inherit = !is_new || self.inherits_acl();
        self.levels.push(WriterLevel {
            name: name.to_vec(),
            is_new,
            inherits_acl: may_inherit && self.path.here().has_default_acl(),
            place: None,
        });
        Ok(entered)
    }

    /// Goes up from a directory that is whole. Its mode comes last, because that may forbid filling
    /// it, and then its times, because filling changes them.
    fn leave(&mut self, attributes: &Attributes) -> Result<(), Failure> {
        let Some(level) = self.levels.pop() else {
            // The directory where it all began.
            let target = CopyTarget {
                node: HostNode::Open(self.path.here().as_fd()),
                may_have_acl: true,
                path: &|| b".".to_vec(),
            };
            return target
                .apply(attributes, &mut self.lost)
                .map_err(|error| local(b".", "cannot finish the directory", error));
        };
        let failed = |error| local(&level.name, "cannot finish the directory", error);
        let Some(dir) = self.path.up().map_err(failed)? else {
            return Ok(());
        };
        let target = CopyTarget {
            node: HostNode::Open(dir.as_fd()),
            may_have_acl: !level.is_new || self.inherits_acl(),
            path: &|| path_below(&self.levels, &level.name),
        };
        target.apply(attributes, &mut self.lost).map_err(failed)
    }

    /// Refuses, before anything is copied, to replace what must stay: without --force anything,
    /// with it all but regular files and symbolic links.
    fn check_place(&self, name: &[u8]) -> Result<(), Failure> {
        if self.is_new() {
            // What others put there meanwhile is found by the rename.
            return Ok(());
        }
        let dir = self.path.here();
        let failed = |error| local(name, "cannot look at", error);
        let refuse = |why: &str| {
            let name = String::from_utf8_lossy(name);
            Err(Failure::new(OPERATION, format!("{name} {why}")))
        };
        let Some(kind) = dir.kind_of(name).map_err(failed)? else {
            return Ok(());
        };
        if !self.force {
            return refuse("is there already: give --force to replace it");
        }
        match kind {
            libc::S_IFREG => Ok(()),
            // /dev/stdout and the like, in a directory of the system.
            libc::S_IFLNK if dir.read_link(name).map_err(failed)?.starts_with(b"/proc/") => {
                refuse("leads to a descriptor of this process: use `xtent cat` to write to it")
            }
            libc::S_IFLNK => Ok(()),
            libc::S_IFDIR => refuse("is a directory: --force replaces no directory by a file"),
            _ => refuse(
                "is a device node, fifo or socket: --force replaces regular files and symbolic links only",
            ),
        }
    }

    /// The permissions that a new file is made with: the final ones, where they are then right.
    fn first_mode(&self, attributes: &Attributes) -> u32 {
        let is_final = attributes.archive.is_none() && !self.inherits_acl();
        if is_final && attributes.mode & self.umask == 0 {
            attributes.mode
        } else {
            0o600
        }
    }

    fn whole(
        &mut self,
        name: &[u8],
        data: &[u8],
        len_bytes: u64,
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        self.check_place(name)?;
        let part = self.part_name();
        let mode = self.first_mode(attributes);
        let file = self
            .path
            .here()
            .create_file(&part, mode)
            .map_err(|error| local(name, "cannot make the file", error))?;
        let written = file.write_all_at(data, 0).and_then(|()| {
            if data.len() as u64 == len_bytes {
                return Ok(());
            }
            file.set_len(len_bytes)
        });
        let result = written
            .map_err(|error| local(name, "cannot write the file", error))
            .and_then(|()| self.finish(file, &part, name, attributes, mode));
        if result.is_err() {
            let _ = self.path.here().remove_file(&part);
        }
        result
    }

    /// Gives a file that is whole its attributes and its name.
    fn finish(
        &mut self,
        file: HostFile,
        part: &[u8],
        name: &[u8],
        attributes: &Attributes,
        mode: u32,
    ) -> Result<(), Failure> {
        let failed = |error| local(name, "cannot finish the file", error);
        let linked = attributes.archive.as_ref().and_then(|kept| kept.linked);
        let node = HostNode::Open(file.as_fd());
        let inherits_acl = self.inherits_acl();
        if mode == attributes.mode && attributes.archive.is_none() && !inherits_acl {
            node.set_times(attributes.atime, attributes.mtime)
        } else {
            let target = CopyTarget {
                node,
                may_have_acl: inherits_acl,
                path: &|| path_below(&self.levels, name),
            };
            target.apply(attributes, &mut self.lost)
        }
        .map_err(failed)?;
        drop(file);
        self.rename(part, name).map_err(failed)?;
        self.remember(linked, name);
        Ok(())
    }

    fn rename(&self, part: &[u8], name: &[u8]) -> io::Result<()> {
        self.path.here().rename(part, name, self.force)
    }

    fn begin(&mut self, name: Vec<u8>, len_bytes: u64, id: u64) -> Result<(), Failure> {
        self.check_place(&name)?;
        let part = self.part_name();
        let file = self
            .path
            .here()
            .create_file(&part, 0o600)
            .map_err(|error| local(&name, "cannot make the file", error))?;
        let sized = file.set_len(len_bytes);
        let sized = sized.map_err(|error| local(&name, "cannot write the file", error));
        self.current = Some(Current {
            id,
            part,
            name,
            file,
        });
        sized.inspect_err(|_| self.abandon())
    }

    /// Removes what there is of the current file.
    fn abandon(&mut self) {
        if let Some(current) = self.current.take() {
            let _ = self.path.here().remove_file(&current.part);
        }
    }

    fn data(&mut self, at: u64, data: &[u8]) -> Result<(), Failure> {
        let Some(current) = &self.current else {
            return Ok(());
        };
        let id = current.id;
        let written = current.file.write_all_at(data, at);
        written
            .map_err(|error| local(&current.name, "cannot write the file", error))
            .inspect_err(|_| {
                // The rest is not read.
                self.refused_file.store(id, Ordering::Relaxed);
                self.abandon();
            })
    }

    fn end(&mut self, attributes: &Attributes) -> Result<(), Failure> {
        let Some(Current {
            part, name, file, ..
        }) = self.current.take()
        else {
            return Ok(());
        };
        let result = self.finish(file, &part, &name, attributes, 0o600);
        if result.is_err() {
            let _ = self.path.here().remove_file(&part);
        }
        result
    }

    /// Makes something that is no regular file, under another name first.
    fn make(
        &mut self,
        name: &[u8],
        attributes: &Attributes,
        make: impl FnOnce(&HostDir, &[u8]) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.check_place(name)?;
        let part = self.part_name();
        let linked = attributes.archive.as_ref().and_then(|kept| kept.linked);
        let may_have_acl = self.inherits_acl();
        let dir = self.path.here();
        let made = make(dir, &part).and_then(|()| {
            let target = CopyTarget {
                node: HostNode::Named(dir, &part),
                may_have_acl,
                path: &|| path_below(&self.levels, name),
            };
            target.apply(attributes, &mut self.lost)?;
            self.path.here().rename(&part, name, self.force)
        });
        if let Err(error) = made {
            let _ = self.path.here().remove_file(&part);
            return Err(local(name, "cannot make", error));
        }
        self.remember(linked, name);
        Ok(())
    }

    fn node(
        &mut self,
        name: &[u8],
        file_type: u32,
        device: u64,
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        let mut why = None;
        let made = self.make(name, attributes, |dir, part| {
            dir.make_node(part, file_type, device).inspect_err(|error| {
                why = (error.raw_os_error() == Some(libc::EPERM)).then(|| error.to_string());
            })
        });
        match (made, why) {
            (Err(_), Some(why)) => {
                let path = || path_below(&self.levels, name);
                self.lost.devices.add(&path, &why);
                Ok(())
            }
            (made, _) => made,
        }
    }
}

/// Hard links.
impl Writer {
    /// Keeps in mind where the first copy of an inode with several names is.
    fn remember(&mut self, ino: Option<u64>, name: &[u8]) {
        let Some(ino) = ino else { return };
        let Ok(identity) = self.path.here().identity_of(name) else {
            return;
        };
        let mut dir = None;
        for level in &mut self.levels {
            dir = match level.place {
                Some(place) => Some(place),
                None => {
                    self.places.push((dir, level.name.clone()));
                    level.place = Some(self.places.len() - 1);
                    level.place
                }
            };
        }
        let made = Made {
            dir,
            name: name.to_vec(),
            identity,
        };
        self.links.insert(ino, made);
    }

    /// Links to the first copy; false when there is none, or it takes no more links. It is then
    /// copied again.
    fn link(&mut self, name: &[u8], ino: u64) -> Result<bool, Failure> {
        let Some(made) = self.links.get(&ino) else {
            return Ok(false);
        };
        self.check_place(name)?;
        let part = {
            self.parts += 1;
            format!("{}{}", self.part_names, self.parts).into_bytes()
        };
        let here = self.path.here();
        let linked = self.open_place(made.dir).and_then(|dir| {
            dir.link(&made.name, here, &part)?;
            if here.identity_of(&part)? != made.identity {
                return Err(io::Error::other("the first copy was replaced meanwhile"));
            }
            here.rename(&part, name, self.force)
        });
        // Where both were the same file already rename() leaves both names.
        let _ = here.remove_file(&part);
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(local(name, "cannot make the hard link", error))
            }
            Err(error) => {
                let path = || path_below(&self.levels, name);
                self.lost.links.add(&path, &error);
                Ok(false)
            }
        }
    }

    /// Opens a directory below the base, name by name: no link leads elsewhere, and no path is too
    /// long.
    fn open_place(&self, place: Option<usize>) -> io::Result<HostDir> {
        let mut names = Vec::new();
        let mut next = place;
        while let Some((above, name)) = next.and_then(|place| self.places.get(place)) {
            names.push(name);
            next = *above;
        }
        let mut dir = self.base.try_clone()?;
        for name in names.into_iter().rev() {
            dir = dir.open_dir(name)?;
        }
        Ok(dir)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_whose_data_cannot_be_written_is_refused_by_its_number() {
        let place = tempfile::tempdir().unwrap();
        let dir = HostDir::open(place.path()).unwrap();
        let mut writer = Writer::new(dir, false, SharedFailures::default()).unwrap();
        let refused = writer.refused_file();
        let begin = CopyJob::Begin {
            name: b"file".to_vec(),
            len_bytes: 1 << 20,
            id: 7,
        };
        writer.handle(begin).unwrap();
        assert_eq!(refused.load(Ordering::Relaxed), 0);
        // No file is that long.
        let data = CopyJob::Data {
            at: u64::MAX,
            data: vec![1; 512],
        };
        writer.handle(data).unwrap();
        assert_eq!(refused.load(Ordering::Relaxed), 7);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
