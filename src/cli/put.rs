//! `xtent put`: the content of a local file into one of a volume.

use std::fs::File as HostFile;
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::Args;
use xtent::target::Target;
use xtent::volume::{
    Done, FiemapFlags, File, Io, MountOptions, OpenOptions, SetTime, SubmitReason, Volume,
};
use xtent::{Error, ErrorKind};

use super::bench::check_serial;
use super::failure::{CORRUPT, Failure, OPERATION, check_interrupted, complain};
use super::{LocalPath, TargetArg, VolumePath};
use crate::bench::progress::Progress;

const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_IN_FLIGHT: usize = 4;

#[derive(Debug, Args)]
#[command(
    after_help = "The file must exist. Its content becomes that of the local one, in place: it gets the blocks that \
    it needs, and is as long afterwards. With --offset or --partial the rest of a longer file stays. Blocks shared \
    with another file are not overwritten yet; what cannot be done, for want of space say, is refused before \
    anything is written. A run that is interrupted may leave a part of the content, but not with --atomic. All is durable when xtent ends. \
    An overwrite alone changes no times.\n\n\
    With --raw the local file, an image say, is written to the blocks of the target from the first one on; \
    what was there is LOST."
)]
pub(super) struct PutArgs {
    /// The local file; - for standard input, which is kept in a temporary file until its end
    #[arg(value_name = "LOCAL")]
    local: LocalPath,
    #[command(flatten)]
    target: TargetArg,
    /// The file in the volume whose content is replaced
    #[arg(
        value_name = "PATH",
        required_unless_present = "raw",
        conflicts_with = "raw"
    )]
    path: Option<VolumePath>,
    /// Writes to the target's own blocks instead of a file of a volume
    #[arg(long, conflicts_with = "offset")]
    raw: bool,
    /// With --raw: the serial number of the target (`xtent info` shows it), for proof that it is
    /// the one you mean
    #[arg(long, value_name = "SERIAL", conflicts_with = "path")]
    i_may_erase: Option<String>,
    /// The byte in the volume's file to begin at; what the local file does not cover stays
    #[arg(long, value_parser = super::values::size)]
    offset: Option<u64>,
    /// Replaces the content at once: after a crash or an error the file has its old content or the
    /// new one. The new one needs space of its own; blocks shared with other files are left to them
    #[arg(long, conflicts_with_all = ["raw", "offset", "partial"])]
    atomic: bool,
    /// Write only the first part of a file that is longer than the local one
    #[arg(long, conflicts_with = "raw")]
    partial: bool,
    /// Reads everything back afterwards and compares
    #[arg(long)]
    verify: bool,
}

pub(super) fn run(args: &PutArgs) -> Result<(), Failure> {
    let mut local = open_local(&args.local)?;
    let about = local.metadata();
    let about = about.map_err(|error| Failure::local("cannot read", &args.local, error))?;
    if !about.is_file() {
        let text = format!(
            "{} is not a regular file: its length must be known before anything is overwritten",
            args.local.display()
        );
        return Err(Failure::new(OPERATION, text));
    }
    let len_bytes = about.len();
    let Some(path) = &args.path else {
        args.target.check()?;
        let target = Target::open(&args.target.target, &super::copying());
        let target = target.map_err(Failure::target)?;
        check_serial(&target, args.i_may_erase.as_deref())?;
        return super::put_raw::run(&target, &mut local, &args.local, args.verify);
    };
    let volume = args.target.open(&super::copying(), &MountOptions::new())?;
    let mut io = volume.io()?;
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(&volume, &mut io, path)?;
    let offset = args.offset.unwrap_or(0);
    let progress = Progress::bytes(if args.verify {
        len_bytes * 2
    } else {
        len_bytes
    });
    progress.message(path.to_string_lossy());
    let crc = match args.atomic {
        true => replace(&file, &mut io, &mut local, len_bytes, &progress),
        false => overwrite(
            &file,
            &mut io,
            &volume,
            &mut local,
            (args, len_bytes),
            &progress,
        ),
    };
    super::events::tell(&volume);
    let crc = crc?;
    file.sync_data(&mut io)?;
    if args.verify && read_back(&file, &mut io, offset, len_bytes, &progress)? != crc {
        let path = path.as_encoded_bytes().escape_ascii();
        let text = format!("verify {path}: what was read back is not what was written");
        return Err(Failure::new(CORRUPT, text));
    }
    drop((file, io));
    Ok(volume.close()?)
}

/// Writes over the content, in place, and makes the file as long.
fn overwrite(
    file: &File,
    io: &mut Io,
    volume: &Volume,
    local: &mut HostFile,
    (args, len_bytes): (&PutArgs, u64),
    progress: &Progress,
) -> Result<u32, Failure> {
    let offset = args.offset.unwrap_or(0);
    let end = check_room(file, io, volume, offset, len_bytes)?;
    let keeps_rest = args.offset.is_some() || args.partial;
    if file.len() > end && keeps_rest {
        let rest = file.len() - end;
        complain(&format!(
            "note: the file's last {rest} bytes are not covered and stay as they are"
        ));
    } else if file.len() != end {
        // Where its length cannot be changed, nothing of it is overwritten either.
        file.set_len(io, end)?;
    }
    write(file, io, local, args, len_bytes, progress)
}

/// The local file as it is read: a signal interrupts it, and its checksum is known at the end.
struct Counted<'a> {
    local: &'a mut HostFile,
    progress: &'a Progress,
    crc: u32,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if xtent::internals::sys::interrupted().is_some() {
            return Err(std::io::Error::other("interrupted"));
        }
        let n = self.local.read(buf)?;
        self.crc = crc32c::crc32c_append(self.crc, &buf[..n]);
        self.progress.add(n as u64);
        Ok(n)
    }
}

/// Replaces the content at once; the checksum of what was written.
fn replace(
    file: &File,
    io: &mut Io,
    local: &mut HostFile,
    len_bytes: u64,
    progress: &Progress,
) -> Result<u32, Failure> {
    let mut content = Counted {
        local,
        progress,
        crc: 0,
    };
    let replaced = file.replace_content(io, len_bytes, &mut content);
    check_interrupted()?;
    replaced?;
    Ok(content.crc)
}

/// The local file. Standard input comes into a temporary file first: its length must be known
/// before anything is overwritten.
fn open_local(local: &Path) -> Result<HostFile, Failure> {
    let failed = |error| Failure::local("cannot read", local, error);
    let mut options = HostFile::options();
    options.read(true);
    if local.as_os_str() != "-" {
        // A fifo without a writer must not hold this process: open(2), O_NONBLOCK.
        let file = options.custom_flags(libc::O_NONBLOCK).open(local);
        return file.map_err(failed);
    }
    let dir = std::env::temp_dir();
    let spool = options.write(true).custom_flags(libc::O_TMPFILE).open(&dir);
    let mut spool =
        spool.map_err(|error| Failure::local("cannot make a temporary file in", &dir, error))?;
    let mut input = std::io::stdin().lock();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        check_interrupted()?;
        match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => spool
                .write_all(&chunk[..n])
                .map_err(|error| Failure::local("cannot write a temporary file in", &dir, error))?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    spool.rewind().map_err(failed)?;
    Ok(spool)
}

/// Why a file is not overwritten.
fn refused(file: &File, text: String) -> Failure {
    Error::new(ErrorKind::NotOverwrite, text)
        .during("put")
        .at_path(file.path().as_os_str().as_bytes())
        .into()
}

/// Refuses, before anything is written, what a write would not be able to do. Returns the end of
/// the range.
fn check_room(
    file: &File,
    io: &mut Io,
    volume: &Volume,
    offset: u64,
    len_bytes: u64,
) -> Result<u64, Failure> {
    let refuse = |text: String| Err(refused(file, text));
    let Some(end) = offset.checked_add(len_bytes) else {
        return refuse(format!(
            "{len_bytes} bytes at {offset} end behind the largest possible file"
        ));
    };
    let now = volume.statfs(io)?;
    let block = u64::from(now.block_bytes.max(1));
    let (mut covered, mut missing, mut unwritten) = (offset / block * block, 0, false);
    for extent in file.fiemap(io, offset, len_bytes)? {
        if extent.flags.contains(FiemapFlags::SHARED) {
            return refuse(format!(
                "the blocks at byte {} are shared with another file: xtent cannot overwrite those yet",
                extent.logical_bytes.max(offset)
            ));
        }
        unwritten |= extent.flags.contains(FiemapFlags::UNWRITTEN);
        missing += extent.logical_bytes.saturating_sub(covered);
        covered = covered.max(extent.logical_bytes.saturating_add(extent.length_bytes));
    }
    missing += end.saturating_sub(covered);
    let free = now.free_blocks.saturating_mul(block);
    if missing > free {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!("{missing} bytes of it have no blocks yet, and {free} bytes are free"),
        )
        .during("put")
        .at_path(file.path().as_os_str().as_bytes())
        .into());
    }
    if missing > 0 || unwritten {
        // The file has to be changed, and where that is impossible nothing is to be overwritten.
        file.set_times(io, None, Some(SetTime::Now))?;
    }
    Ok(end)
}

/// Overwrites; the checksum of what was written.
fn write(
    file: &File,
    io: &mut Io,
    local: &mut HostFile,
    args: &PutArgs,
    len_bytes: u64,
    progress: &Progress,
) -> Result<u32, Failure> {
    let unit = io.block_bytes() as usize;
    let offset = args.offset.unwrap_or(0);
    let aligned = offset.is_multiple_of(unit as u64);
    let mut buffers = (0..CHUNKS_IN_FLIGHT)
        .map(|_| io.alloc(CHUNK_BYTES))
        .collect::<Result<Vec<_>, _>>()?;
    let (mut crc, mut done_bytes, mut failure) = (0, 0, None);
    while done_bytes < len_bytes && failure.is_none() {
        if xtent::internals::sys::interrupted().is_some() {
            break;
        }
        let Some(mut buffer) = buffers.pop() else {
            reap(io, &mut buffers, &mut failure, progress);
            continue;
        };
        let want = usize::try_from(len_bytes - done_bytes)
            .unwrap_or(usize::MAX)
            .min(CHUNK_BYTES);
        if let Err(error) = local.read_exact(&mut buffer[..want]) {
            failure = Some(Failure::local("cannot read", &args.local, error));
            break;
        }
        crc = crc32c::crc32c_append(crc, &buffer[..want]);
        let at = offset + done_bytes;
        done_bytes += want as u64;
        if aligned && want == CHUNK_BYTES {
            // The depth is more than the buffers there are: it is never full.
            if let Err(refused) = io.submit_write(file, at, buffer, want as u64) {
                failure = Some(match refused.reason {
                    SubmitReason::Error(error) => error.into(),
                    SubmitReason::Full => Failure::new(OPERATION, "the queue is full"),
                });
            }
        } else {
            // The edges share blocks with data that stays: nothing else may be in flight then.
            while io.outstanding() > 0 {
                reap(io, &mut buffers, &mut failure, progress);
            }
            match file.write_all_at(io, &buffer[..want], at) {
                Ok(()) => progress.add(want as u64),
                Err(error) => failure = Some(error.into()),
            }
            buffers.push(buffer);
        }
    }
    while io.outstanding() > 0 {
        reap(io, &mut buffers, &mut failure, progress);
    }
    let broken_off = failure.is_some() || xtent::internals::sys::interrupted().is_some();
    if broken_off && done_bytes > 0 {
        complain("the file may be overwritten in part now");
    }
    match failure {
        Some(failure) => Err(failure),
        None => check_interrupted().map(|()| crc),
    }
}

fn reap(
    io: &mut Io,
    buffers: &mut Vec<xtent::volume::DmaBuf>,
    failure: &mut Option<Failure>,
    progress: &Progress,
) {
    let ended = io.poll(
        CHUNKS_IN_FLIGHT,
        |Done {
             user_data,
             buf,
             result,
         }| {
            match result {
                Ok(n) if n as u64 == user_data => progress.add(user_data),
                Ok(n) => {
                    let text = format!("wrote {n} bytes instead of {user_data}");
                    failure.get_or_insert(Failure::new(super::failure::DEVICE, text));
                }
                Err(error) => {
                    failure.get_or_insert(error.into());
                }
            }
            buffers.push(buf);
        },
    );
    if ended == 0 {
        io.relax();
    }
}

fn read_back(
    file: &File,
    io: &mut Io,
    offset: u64,
    len_bytes: u64,
    progress: &Progress,
) -> Result<u32, Failure> {
    use std::io::{Seek, SeekFrom};
    let mut reader = file.reader(io)?;
    reader.seek(SeekFrom::Start(offset))?;
    let mut reader = reader.take(len_bytes);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut crc = 0;
    loop {
        check_interrupted()?;
        let n = reader.read(&mut chunk)?;
        if n == 0 {
            return Ok(crc);
        }
        crc = crc32c::crc32c_append(crc, &chunk[..n]);
        progress.add(n as u64);
    }
}
