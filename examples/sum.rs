//! A tool of its own: the CRC-32C of every regular file below a directory: `sum TARGET [PATH]`.

use std::io::BufRead;

use xtent::volume::{FileType, Io, OpenOptions, ReadDir, Volume};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let path = args.get(2).map_or("/", String::as_str);
    let volume = Volume::open(&args[1])?;
    let mut io = volume.io()?;
    let mut directories = vec![volume.read_dir(&mut io, path)?];
    while let Some(directory) = directories.pop() {
        directories.extend(sum(directory, &mut io)?);
    }
    Ok(())
}

/// Prints the sums of a directory's files; returns its subdirectories.
fn sum(mut directory: ReadDir, io: &mut Io) -> Result<Vec<ReadDir>, Box<dyn std::error::Error>> {
    let mut below = Vec::new();
    while let Some(entry) = directory.next_entry(io)? {
        // Directories without file types are rare (mkfs.xfs -n ftype=0 of old).
        let file_type = match entry.file_type() {
            Some(file_type) => file_type,
            None => entry.metadata(io)?.file_type(),
        };
        match file_type {
            FileType::Directory => below.push(entry.read_dir(io)?),
            FileType::Regular => {
                let file = entry.open(io, OpenOptions::new().read(true))?;
                let mut crc = 0;
                let mut reader = file.reader(io)?;
                loop {
                    let bytes = reader.fill_buf()?;
                    if bytes.is_empty() {
                        break;
                    }
                    crc = crc32c::crc32c_append(crc, bytes);
                    let len = bytes.len();
                    reader.consume(len);
                }
                println!("{crc:08x}  {}", entry.path().display());
            }
            _ => {}
        }
    }
    Ok(below)
}
