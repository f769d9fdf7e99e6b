//! An image with a file, for what goes through a filesystem.

use std::path::Path;
use std::process::Command;

/// Whether an image can be made here.
pub(crate) fn is_possible() -> bool {
    Command::new("mkfs.xfs").arg("-V").output().is_ok()
}

/// An XFS with one file in it (`/file`), made without mounting: mkfs.xfs copies it in.
pub(crate) fn make(dir: &Path, file_bytes: u64) -> xtent::Result<String> {
    make_of(dir, file_bytes, 320 << 20)
}

/// As [`make`], in an image of this size.
pub(crate) fn make_of(dir: &Path, file_bytes: u64, image_bytes: u64) -> xtent::Result<String> {
    let io_error = |e| xtent::Error::system("cannot make the image", e);
    let content = dir.join("content");
    let image = dir.join("disk.img");
    let proto = dir.join("proto");
    let bytes = vec![1; usize::try_from(file_bytes).unwrap_or(0)];
    std::fs::write(&content, bytes).map_err(io_error)?;
    let text = format!(
        "/\n0 0\nd--755 0 0\nfile ---644 0 0 {}\n$\n",
        content.display()
    );
    std::fs::write(&proto, text).map_err(io_error)?;
    let file = std::fs::File::create(&image).map_err(io_error)?;
    file.set_len(image_bytes).map_err(io_error)?;
    let output = Command::new("mkfs.xfs")
        .args(["-q", "-f", "-p"])
        .args([&proto, &image])
        .output()
        .map_err(io_error)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(xtent::Error::new(xtent::ErrorKind::System, said).during("mkfs.xfs"));
    }
    Ok(image.display().to_string())
}
