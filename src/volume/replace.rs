//! The whole content of a file replaced at once.

use std::io::Read;

use super::shared::VolumeShared;
use super::space_lock::ExclusiveSpace;
use super::space_wait::lock_space;
use super::{File, Io};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::{MapChange, MetaIo, StagedContent};

/// Bytes of the content that are written at once.
const PIECE_BYTES: usize = 1 << 20;

impl File {
    /// Replaces the whole content of the file by the next `len_bytes` that `content` gives, which
    /// become its length: after a crash it has the old content or the new one, nothing between. The
    /// new content is written to blocks of its own first, so both need space; other handles read
    /// the old one until then. In memory when this returns, and durable after a sync. Other
    /// operations that change the space of the file wait meanwhile, so `content` must not wait for
    /// one of them.
    ///
    /// # Errors
    /// Where the content ends early ([`ErrorKind::UnexpectedEof`]) or cannot be read;
    /// [`ErrorKind::NoSpace`]; [`ErrorKind::Unsupported`] for contents in too many pieces for one
    /// transaction of the log; otherwise as [`File::set_len`]. The file has its old content then,
    /// unless it could not be read again after the transaction.
    ///
    /// ```no_run
    /// # use xtent::volume::{OpenOptions, Volume};
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let file = OpenOptions::new().write(true).open(&volume, &mut io, "/config")?;
    /// let new = b"mode = fast\n";
    /// file.replace_content(&mut io, new.len() as u64, &mut &new[..])?;
    /// file.sync_all(&mut io)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn replace_content(
        &self,
        io: &mut Io,
        len_bytes: u64,
        content: &mut impl Read,
    ) -> Result<()> {
        self.check_change(io)
            .and_then(|()| self.replace_by(io, len_bytes, content))
            .map_err(|error| self.explain(error, "replace the content", 0))
    }

    fn replace_by(&self, io: &mut Io, len_bytes: u64, content: &mut impl Read) -> Result<()> {
        let (volume, inode) = (&self.volume, &self.shared.inode);
        let (staged, _one_at_a_time) = io.with_reserves(|io| self.stage(io, len_bytes))?;
        let written = write_staged(io, &staged, len_bytes, content);
        let replaced = written.and_then(|()| self.exchange(io, &staged));
        let (core, id) = (&mut io.core, inode.id());
        match replaced {
            Ok(()) => {
                // It is the content, whatever comes of the old one.
                if let Err(error) = self.free_old(io, &staged) {
                    inode.note_spare();
                    note_left(volume, &error);
                }
                Ok(())
            }
            Err(error) => {
                // Of what stays, whatever the failure was.
                inode.note_spare();
                let dropped = volume.fs.drop_staged(core, id, &staged);
                if let Err(left) = dropped.and_then(|()| volume.reread(io, inode)) {
                    note_left(volume, &left);
                }
                Err(error)
            }
        }
    }

    /// Locks the space of the file, and has blocks allocated for a new content.
    fn stage(&self, io: &mut Io, len_bytes: u64) -> Result<(StagedContent, ExclusiveSpace<'_>)> {
        let (volume, inode) = (&self.volume, &self.shared.inode);
        let space = lock_space(io, inode);
        self.prepare_change(io, Some(len_bytes))?;
        match volume.fs.stage_content(&mut io.core, inode.id(), len_bytes) {
            Ok(staged) => Ok((staged, space)),
            Err(error) => {
                // Some may be there that could not be freed again.
                inode.note_spare();
                Err(error)
            }
        }
    }

    /// Makes the new content that of the file. Reads that are in flight go on with the old one.
    fn exchange(&self, io: &mut Io, staged: &StagedContent) -> Result<()> {
        let all = MapChange {
            frozen: 0..u64::MAX,
            gone: 0..0,
        };
        self.change_locked(io, all, None, |fs, core, id, now| {
            let ticket = fs.replace_content(core, id, staged, now)?;
            self.shared.inode.note_change(ticket);
            Ok(())
        })
    }

    /// Frees the old content, when no operation is at it any more.
    fn free_old(&self, io: &mut Io, staged: &StagedContent) -> Result<()> {
        let block = u64::from(self.volume.block_bytes()).max(1);
        let behind_end = MapChange {
            frozen: 0..0,
            gone: self.shared.inode.size_bytes().next_multiple_of(block)..u64::MAX,
        };
        self.change_locked(io, behind_end, None, |fs, core, id, _| {
            fs.drop_old(core, id, staged)
        })
    }
}

#[cold]
fn note_left(volume: &VolumeShared, error: &Error) {
    tracing::warn!(
        target_name = &*volume.target.name,
        %error,
        "blocks past the end of a file whose content was replaced could not be freed: they stay"
    );
}

/// Writes the content to its blocks.
fn write_staged(
    io: &mut Io,
    staged: &StagedContent,
    len_bytes: u64,
    content: &mut impl Read,
) -> Result<()> {
    let mut left = len_bytes;
    let mut buf = vec![0; PIECE_BYTES];
    for place in staged.places() {
        let mut at = place.start;
        while at < place.end {
            let room = usize::try_from(place.end - at).unwrap_or(usize::MAX);
            let piece = room.min(PIECE_BYTES);
            let data = usize::try_from(left).unwrap_or(usize::MAX).min(piece);
            content
                .read_exact(&mut buf[..data])
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => {
                        let detail = format!("the content ends before {len_bytes} bytes");
                        Error::new(ErrorKind::UnexpectedEof, detail)
                    }
                    _ => Error::system("read the content", error),
                })?;
            buf[data..piece].fill(0);
            io.core.write_at(at, &buf[..piece])?;
            left -= data as u64;
            at += piece as u64;
        }
    }
    Ok(())
}
