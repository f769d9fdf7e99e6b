//! Where inodes lie.

use std::ops::Range;

use super::super::geometry::{Geometry, Ino};
use super::BufPlace;
use crate::error::{Error, ErrorKind, Result};

/// The buffer of an inode's cluster, and where the inode lies in it.
pub(super) fn place_of_inode(geometry: &Geometry, ino: Ino) -> Result<(BufPlace, Range<usize>)> {
    let place = geometry
        .locate_inode(ino)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there can be no {ino}")))?;
    let cluster = geometry.cluster_blocks();
    if cluster > geometry.inode_align_blocks.max(1) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "inode chunks are not aligned: such a filesystem is only read",
        ));
    }
    let skipped = place.ag_block.checked_rem(cluster).unwrap_or(0);
    let first = place.ag_block.saturating_sub(skipped);
    let addr_bytes = geometry.ag_block_addr(place.ag, first);
    let into = geometry
        .bytes(skipped.into())
        .saturating_add(place.offset_bytes.into());
    let start = usize::try_from(into).unwrap_or(usize::MAX);
    let inode_bytes = usize::try_from(geometry.inode_bytes).unwrap_or(0);
    let buf = BufPlace {
        addr_bytes,
        len_bytes: usize::try_from(geometry.bytes(cluster.into())).unwrap_or(0),
    };
    Ok((buf, start..start.saturating_add(inode_bytes)))
}
