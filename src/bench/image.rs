//! The image that a comparison runs on: making one, reading it into the page cache, checking it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use xtent::{Error, ErrorKind, Result};

use super::pattern;

/// Paths of the file to read and the file to overwrite in an image that xtent makes.
pub(crate) const READ_FILE: &str = "/bench/read.dat";
/// The empty file that workloads make longer.
pub(crate) const GROW_FILE: &str = "/bench/grow.dat";
/// See [`READ_FILE`].
pub(crate) const WRITE_FILE: &str = "/bench/write.dat";

const IMAGE_BYTES: u64 = 1 << 30;
/// mkfs.xfs writes a file of a prototype as if it were one extent, over whatever comes after the
/// first: both files and the log must fit into one allocation group of the two.
const FILE_BYTES: u64 = 192 << 20;

/// A directory that goes with everything in it.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Makes an image with the two files, by mkfs.xfs alone: no root, no mount. It goes with the
/// `Scratch`.
pub(crate) fn make() -> Result<(Scratch, PathBuf)> {
    let at = std::env::temp_dir().join(format!("xtent-compare-{}", std::process::id()));
    std::fs::create_dir(&at)
        .map_err(|e| Error::system("cannot make a directory", e).at_path(bytes(&at)))?;
    let scratch = Scratch(at.clone());
    let data = at.join("data");
    fill(&data).map_err(|e| Error::system("cannot fill a file", e).at_path(bytes(&data)))?;
    let proto = at.join("proto");
    let line = |name: &str, from: &Path| format!("{name} ---644 0 0 {}\n", from.display());
    let text = format!(
        "/dev/null\n0 0\nd--755 0 0\nbench d--755 0 0\n{}{}{}$\n$\n",
        line("read.dat", &data),
        line("write.dat", &data),
        line("grow.dat", Path::new("/dev/null"))
    );
    std::fs::write(&proto, text)
        .map_err(|e| Error::system("cannot write a file", e).at_path(bytes(&proto)))?;
    let image = at.join("image.xfs");
    let device = format!("file,name={},size={IMAGE_BYTES},agcount=2", image.display());
    let mut mkfs = Command::new("mkfs.xfs");
    mkfs.args(["-q", "-d", &device, "-p"]).arg(&proto);
    let output = run(&mut mkfs).map_err(|e| {
        Error::new(
            ErrorKind::NotFound,
            "no image was given and mkfs.xfs cannot be run to make one: install xfsprogs, or give an \
             XFS image with --image FILE (scripts/demo.sh makes one)",
        )
        .because(e)
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::new(ErrorKind::System, "mkfs.xfs made no image").because(text));
    }
    let _ = std::fs::remove_file(&data);
    Ok((scratch, image))
}

fn fill(path: &Path) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    let mut chunk = vec![0; 1 << 20];
    for index in 0..FILE_BYTES >> 20 {
        pattern::fill_random(&mut chunk, index);
        file.write_all(&chunk)?;
    }
    Ok(())
}

/// System tools live in sbin, which is not in everyone's PATH.
pub(super) fn run(command: &mut Command) -> std::io::Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let program = command.get_program().to_owned();
    // The search for the program uses this process's PATH, not the child's.
    match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let at = Path::new("/usr/sbin").join(program);
            Command::new(at).args(command.get_args()).output()
        }
        other => other,
    }
}

/// Reads the whole image once, so that both sides find it in the page cache; its bytes, and whether
/// it is small enough to stay there.
pub(crate) fn warm(image: &Path, memory_bytes: u64) -> Result<(u64, bool)> {
    let failed = |e| Error::system("cannot read the image", e).at_path(bytes(image));
    let mut file = File::open(image).map_err(failed)?;
    let len_bytes = file.metadata().map_err(failed)?.len();
    let fits = len_bytes < memory_bytes / 2;
    let mut chunk = vec![0; 1 << 20];
    while fits && file.read(&mut chunk).map_err(failed)? > 0 {
        super::check_interrupted()?;
    }
    Ok((len_bytes, fits))
}

/// The result of `xfs_repair -n` on an image or a disk: clean or not; `None` when there is no
/// xfs_repair.
pub(crate) fn check_clean(image: &Path) -> Option<std::result::Result<(), String>> {
    let mut repair = Command::new("xfs_repair");
    repair.arg("-n");
    if image.is_file() {
        repair.arg("-f");
    }
    let output = run(repair.arg(image)).ok()?;
    if output.status.success() {
        return Some(Ok(()));
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    Some(Err(text))
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
