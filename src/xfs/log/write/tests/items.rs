//! Items one by one: what replay makes of them.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::super::super::super::format::btree::BmdrHeader;
use super::super::super::super::format::inode::{self as layout, InodeCore};
use super::super::super::super::format::log::{OpHeader, RecordHeader};
use super::super::super::super::format::log_items::{OP_CONTINUE, OP_WAS_CONTINUED};
use super::super::super::super::format::{self};
use super::super::super::BB;
use super::super::*;
use super::world::{BLOCK_BYTES, World};

/// Bytes of the regions of the only checkpoint in a log without cycle numbers to be put back.
pub(super) fn regions_of(world: &mut World) -> Vec<usize> {
    let mut lengths: Vec<usize> = Vec::new();
    let mut at = world.writer.log.addr_bytes as usize;
    while let Ok((header, _)) = RecordHeader::read_from_prefix(&world.disk.bytes[at..])
        && header.magicno.get() == RECORD_MAGIC
        && header.len.get() > 0
    {
        let headers = header.header_blocks() as usize * BB;
        let len = header.len.get() as usize;
        let mut payload = world.disk.bytes[at + headers..at + headers + len].to_vec();
        for (index, block) in payload.chunks_mut(BB).enumerate() {
            block[..4].copy_from_slice(header.cycle_data[index].as_bytes());
        }
        let mut rest = payload.as_slice();
        for _ in 0..header.num_logops.get() {
            let (op, after) = OpHeader::ref_from_prefix(rest).unwrap();
            let len = op.len.get() as usize;
            // Never a part without content.
            let is_part = op.flags & (OP_CONTINUE | OP_WAS_CONTINUED) != 0;
            assert!(!is_part || len > 0);
            match op.flags & OP_WAS_CONTINUED {
                0 if len > 0 => lengths.push(len),
                0 => (),
                _ => *lengths.last_mut().unwrap() += len,
            }
            rest = &after[len..];
        }
        at += headers + len;
    }
    assert_eq!(lengths.remove(0), size_of::<TransactionHeader>());
    lengths
}

/// A world with one cluster of inodes, as its replay has to make it.
struct Cluster {
    world: World,
    addr: usize,
    inodes: Vec<Vec<u8>>,
}

const CLUSTER_BYTES: usize = 16 << 10;
const INODE_BYTES: usize = 512;

impl Cluster {
    /// Inodes with random forks, which nothing uses.
    fn new(seed: u64) -> Self {
        let mut world = World::new(512, 0, 512, seed);
        let addr = world.buffers[0].0.next_multiple_of(CLUSTER_BYTES);
        let mut inodes = Vec::new();
        for number in 0..CLUSTER_BYTES / INODE_BYTES {
            let mut inode = vec![0; INODE_BYTES];
            world.rng.fill_bytes(&mut inode);
            let mut core = InodeCore::new_zeroed();
            core.magic = layout::MAGIC.into();
            core.version = layout::VERSION;
            core.mode = (layout::S_IFREG | 0o600).into();
            core.format = layout::FORMAT_EXTENTS;
            core.aformat = layout::FORMAT_EXTENTS;
            core.next_unlinked = (number as u32 + 77).into();
            core.ino = (128 + number as u64).into();
            core.uuid = world.superblock.meta_uuid;
            inode[..layout::CORE_BYTES].copy_from_slice(core.as_bytes());
            assert!(format::set_checksum(&mut inode, layout::CRC_OFFSET));
            inodes.push(inode);
        }
        world.disk.write_at(addr as u64, &inodes.concat()).unwrap();
        Self {
            world,
            addr,
            inodes,
        }
    }

    fn item(&self, number: usize, data: bool, attributes: bool) -> Result<LogItem> {
        LogItem::inode(&InodeChange {
            cluster_addr_bytes: self.addr as u64,
            cluster_bytes: CLUSTER_BYTES as u32,
            offset_bytes: (number * INODE_BYTES) as u32,
            dinode: &self.inodes[number],
            data,
            attributes,
        })
    }

    /// Logs these items, and returns the cluster after a replay.
    fn replay(&mut self, items: &[LogItem]) -> Vec<u8> {
        self.replay_all(&[items]).0
    }

    /// Logs checkpoints, the tail before all of them.
    fn replay_all(&mut self, checkpoints: &[&[LogItem]]) -> (Vec<u8>, bool) {
        let World {
            writer,
            disk,
            superblock,
            ..
        } = &mut self.world;
        let tail = writer.lsn();
        for items in checkpoints {
            for record in writer.checkpoint(items, tail).unwrap().records {
                for write in record.writes {
                    disk.write_at(write.addr_bytes, &write.bytes).unwrap();
                }
            }
        }
        let end = super::super::super::end(disk, superblock).unwrap();
        assert_eq!(end.state, LogState::Dirty);
        let replayed = super::super::super::replay(disk, superblock, &end, 1 << 30).unwrap();
        let cluster = replayed.overlay.read(disk, self.addr as u64, CLUSTER_BYTES);
        (cluster.unwrap(), replayed.unfinished.is_empty())
    }

    fn core(&mut self, number: usize) -> &mut InodeCore {
        let (core, _) = InodeCore::mut_from_prefix(&mut self.inodes[number]).unwrap();
        core
    }

    /// As replay leaves it, of a checkpoint of this number.
    fn sealed(&self, number: usize, lsn: u64) -> Vec<u8> {
        let mut inode = self.inodes[number].clone();
        let (core, _) = InodeCore::mut_from_prefix(&mut inode).unwrap();
        core.lsn = lsn.into();
        assert!(format::set_checksum(&mut inode, layout::CRC_OFFSET));
        inode
    }
}

/// Fills a fork of this form; returns how many extents the inode has to count.
fn fill_fork(rng: &mut SmallRng, form: u8, fork: &mut [u8]) -> u16 {
    let most = fork.len() / 16;
    match form {
        layout::FORMAT_EXTENTS => {
            let count = rng.random_range(0..=most);
            rng.fill_bytes(&mut fork[..count * 16]);
            count as u16
        }
        layout::FORMAT_BTREE => {
            let most = (fork.len() - 4) / 16;
            let count = rng.random_range(1..=most);
            let header = BmdrHeader {
                level: rng.random_range(1..5).into(),
                numrecs: (count as u16).into(),
            };
            fork[..4].copy_from_slice(header.as_bytes());
            rng.fill_bytes(&mut fork[4..4 + count * 8]);
            rng.fill_bytes(&mut fork[4 + most * 8..4 + most * 8 + count * 8]);
            rng.random()
        }
        _ => 0,
    }
}

/// Changes every field of an inode, and its forks, to ones of these forms.
fn change_inode(cluster: &mut Cluster, number: usize, data_form: u8, attribute_form: Option<u8>) {
    let mut rng = cluster.world.rng.clone();
    let forkoff: u8 = match attribute_form {
        None => 0,
        Some(_) => rng.random_range(6..=38),
    };
    let core = cluster.core(number);
    let (uuid, ino, link) = (core.uuid, core.ino, core.next_unlinked);
    rng.fill_bytes(core.as_mut_bytes());
    (core.uuid, core.ino, core.next_unlinked) = (uuid, ino, link);
    core.magic = layout::MAGIC.into();
    core.version = layout::VERSION;
    core.forkoff = forkoff;
    core.format = data_form;
    core.aformat = attribute_form.unwrap_or(layout::FORMAT_EXTENTS);
    let kind = match data_form {
        layout::FORMAT_DEV => layout::S_IFCHR,
        layout::FORMAT_LOCAL => layout::S_IFDIR,
        _ => layout::S_IFREG,
    };
    core.mode = (kind | core.mode.get() & 0o7777).into();
    core.nblocks = (u64::MAX >> 1).into();
    core.lsn = 0.into();
    let pad = std::mem::offset_of!(InodeCore, cowextsize) + 4;
    core.as_mut_bytes()[pad..pad + 12].fill(0);
    let literal = &mut cluster.inodes[number][layout::CORE_BYTES..];
    let split = match forkoff {
        0 => literal.len(),
        units => usize::from(units) * 8,
    };
    let (data, attributes) = literal.split_at_mut(split);
    let extents = fill_fork(&mut rng, data_form, data);
    let mut size = rng.random_range(0..1 << 40);
    match data_form {
        layout::FORMAT_DEV => rng.fill_bytes(&mut data[..4]),
        layout::FORMAT_LOCAL => {
            size = rng.random_range(0..=data.len() / 4) * 4;
            rng.fill_bytes(&mut data[..size]);
        }
        _ => (),
    }
    let mut attribute_extents = 0;
    if let Some(form) = attribute_form {
        attribute_extents = fill_fork(&mut rng, form, attributes);
        if form == layout::FORMAT_LOCAL {
            let size = rng.random_range(1..=attributes.len() / 4) * 4;
            rng.fill_bytes(&mut attributes[..size]);
            attributes[..2].copy_from_slice(&(size as u16).to_be_bytes());
        }
    }
    let core = cluster.core(number);
    core.size = (size as u64).into();
    if core.flags2.get() & layout::FLAG2_NREXT64 == 0 {
        core.big_nextents = 0.into();
        core.nextents = u32::from(extents).into();
        core.anextents = attribute_extents.into();
    } else {
        core.big_nextents = u64::from(extents).into();
        core.nextents = u32::from(attribute_extents).into();
    }
    cluster.world.rng = rng;
}

#[test]
fn inodes_with_forks_of_every_form() {
    let forms = [
        layout::FORMAT_DEV,
        layout::FORMAT_LOCAL,
        layout::FORMAT_EXTENTS,
        layout::FORMAT_BTREE,
    ];
    let attribute_forms = [None, Some(1), Some(2), Some(3)];
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed);
        let mut number = 0;
        let mut items = Vec::new();
        for form in forms {
            for attribute_form in attribute_forms {
                change_inode(&mut cluster, number, form, attribute_form);
                items.push(cluster.item(number, true, true).unwrap());
                number += 1;
            }
        }
        let lsn = cluster.world.writer.lsn();
        let now = cluster.replay(&items);
        for (index, inode) in now.chunks(INODE_BYTES).enumerate() {
            let lsn = if index < number { lsn } else { 0 };
            let expected = cluster.sealed(index, lsn);
            let differs = (0..INODE_BYTES).find(|at| inode[*at] != expected[*at]);
            assert_eq!(differs, None, "seed {seed}, inode {index}");
        }
    }
}

#[test]
fn only_the_forks_that_changed_are_logged() {
    let mut cluster = Cluster::new(7);
    change_inode(
        &mut cluster,
        0,
        layout::FORMAT_EXTENTS,
        Some(layout::FORMAT_LOCAL),
    );
    let whole = cluster.item(0, true, true).unwrap();
    let data = cluster.item(0, true, false).unwrap();
    let attributes = cluster.item(0, false, true).unwrap();
    let core = cluster.item(0, false, false).unwrap();
    assert_eq!(core.region_count(), 2);
    let bytes = |item: &LogItem| item.log_bytes();
    assert_eq!(bytes(&core), 12 + 56 + 12 + 176);
    assert_eq!(
        bytes(&whole) + bytes(&core),
        bytes(&data) + bytes(&attributes)
    );
    assert!(bytes(&attributes) > bytes(&core));
}

#[test]
fn a_size_in_the_inode_is_not_padded_but_its_region_is() {
    let mut cluster = Cluster::new(7);
    change_inode(&mut cluster, 0, layout::FORMAT_LOCAL, None);
    cluster.core(0).size = 13.into();
    let item = cluster.item(0, true, false).unwrap();
    let regions: Vec<&[u8]> = item.regions().collect();
    assert_eq!(regions[2].len(), 16);
    // Their size in the first region, and zeroes behind them.
    assert_eq!(regions[0][10..12], [13, 0]);
    assert_eq!(regions[2][13..], [0; 3]);
}

#[test]
fn inodes_that_contradict_themselves_are_errors() {
    let wrong: [fn(&mut InodeCore); 7] = [
        |core| core.magic = 0.into(),
        |core| core.forkoff = 43,
        |core| core.format = 9,
        |core| core.nextents = 1000.into(),
        |core| {
            core.format = layout::FORMAT_LOCAL;
            core.size = u64::MAX.into();
        },
        |core| core.format = layout::FORMAT_BTREE,
        |core| {
            core.forkoff = 41;
            core.aformat = layout::FORMAT_BTREE;
        },
    ];
    for (index, change) in wrong.iter().enumerate() {
        let mut cluster = Cluster::new(index as u64);
        cluster.inodes[0][layout::CORE_BYTES..].fill(0);
        assert!(cluster.item(0, true, true).is_ok());
        change(cluster.core(0));
        let error = cluster.item(0, true, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "case {index}");
    }
}

#[test]
fn links_of_unlinked_lists_and_nothing_else_of_a_cluster() {
    let mut cluster = Cluster::new(5);
    let before: Vec<_> = (0..32).map(|number| cluster.sealed(number, 0)).collect();
    for number in [0, 3, 4, 31] {
        cluster.core(number).next_unlinked = 4711.into();
        cluster.core(number).mode = 7.into();
    }
    let content = cluster.inodes.concat();
    let starts = [0, 3, 4, 31].map(|number| number * INODE_BYTES);
    let item = LogItem::unlinked_links(cluster.addr as u64, &content, starts);
    assert_eq!(item.region_count(), 5);
    assert_eq!(item.log_bytes(), (12 + 36) + 4 * (12 + 128));
    let now = cluster.replay(&[item]);
    for (number, inode) in now.chunks(INODE_BYTES).enumerate() {
        let mut expected = before[number].clone();
        if [0, 3, 4, 31].contains(&number) {
            let (core, _) = InodeCore::mut_from_prefix(&mut expected).unwrap();
            core.next_unlinked = 4711.into();
            assert!(format::set_checksum(&mut expected, layout::CRC_OFFSET));
        }
        assert!(inode == expected, "inode {number}");
    }
}

#[test]
fn cancelled_buffers_and_inodes_are_not_replayed() {
    let mut cluster = Cluster::new(6);
    let before = cluster.inodes.concat();
    cluster.core(2).mode = (layout::S_IFREG | 0o777).into();
    let inode = cluster.item(2, false, false).unwrap();
    let addr = cluster.addr as u64;
    let buffer = LogItem::buffer(addr, 0, &vec![1; CLUSTER_BYTES], [u32::MAX; 4]);
    let cancel = LogItem::cancel(addr, CLUSTER_BYTES);
    assert_eq!(cancel.log_bytes(), 12 + 36);
    assert_eq!(LogItem::cancel(addr, 4096).log_bytes(), 12 + 24);
    let items = [vec![buffer, inode], vec![cancel]];
    let (now, _) = cluster.replay_all(&[&items[0], &items[1]]);
    assert!(now == before);
    // And what comes after it is.
    cluster.core(2).mode = (layout::S_IFREG | 0o700).into();
    let again = [cluster.item(2, false, false).unwrap()];
    let lsn = cluster.world.writer.lsn();
    let (now, _) = cluster.replay_all(&[&again]);
    assert!(now[2 * INODE_BYTES..3 * INODE_BYTES] == cluster.sealed(2, lsn));
}

#[test]
fn new_chunks_and_intents() {
    let mut cluster = Cluster::new(8);
    let addr = cluster.addr as u64;
    let new = NewInodes {
        ag: 0,
        ag_block: (addr / BLOCK_BYTES) as u32,
        count: 64,
        inode_bytes: 512,
        length_blocks: 8,
        generation: 99,
    };
    let intent = LogItem::to_free(1 << 40, &[(5, 6), (70, 8)]);
    assert_eq!(intent.log_bytes(), 12 + 16 + 32);
    let first = [LogItem::new_inodes(&new), intent];
    let (now, is_finished) = cluster.replay_all(&[&first]);
    assert!(!is_finished);
    let (core, _) = InodeCore::ref_from_prefix(&now).unwrap();
    assert_eq!(core.ino.get(), u64::from(new.ag_block) * 8);
    assert_eq!((core.generation.get(), core.mode.get()), (99, 0));
    let mut cluster = Cluster::new(9);
    let pair = [
        [LogItem::to_free(7, &[(5, 6)])],
        [LogItem::freed(7, &[(5, 6)])],
    ];
    let (_, is_finished) = cluster.replay_all(&[&pair[0], &pair[1]]);
    assert!(is_finished);
}

#[test]
fn dirty_maps_of_every_length() {
    for len in [512, 1024, 4096, 4608, 8192, 65536] {
        let content: Vec<u8> = (0..len).map(|at| (at / 128) as u8).collect();
        let chunks = len / 128;
        // Bits behind the end do not count.
        let all = LogItem::buffer(0, 5, &content, [u32::MAX; 16]);
        let regions: Vec<&[u8]> = all.regions().collect();
        assert_eq!(regions.len(), 2);
        assert_eq!(regions[1].len(), len);
        let words = len.div_ceil(4096);
        assert_eq!(regions[0].len(), 20 + 4 * words);
        let set: u32 = regions[0][20..].iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(set as usize, chunks);
        let second = LogItem::buffer(0, 5, &content, [0xaaaa_aaaa; 16]);
        assert_eq!(second.region_count() as usize, 1 + chunks / 2);
        let last = second.regions().last().unwrap();
        assert!(last.iter().all(|byte| *byte == (chunks - 1) as u8) && last.len() == 128);
    }
}
