//! Files whose length and space change, and what of that a crash may leave: the state after any
//! operation that was begun, or one between two transactions of an operation.
//!
//! Data that an operation writes in place belongs to a block of the device, not to a place in a
//! file: after a crash it may be seen where an older state has that block. So a state says which
//! block is where, and each block has its contents in order.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use xtent::internals::xfs::{Fs, Ino, InodeId, MetaIo};

use super::space_op::{SpaceOp, data_of};

/// Writes of a device are at least so long, and whole.
const SECTOR_BYTES: usize = 512;

/// A block that was never written.
const ZEROES: &[u8] = &[0; 64 << 10];

pub fn at(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

/// Which block is where in a file. What has none reads as zeroes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    size: u64,
    blocks: Vec<Option<usize>>,
}

/// A layout, or one on the way to the next; positions in blocks.
#[derive(Debug, Clone, Copy)]
enum View {
    Whole,
    /// Blocks from `cut` to `end` are gone.
    Punched {
        cut: usize,
        end: usize,
    },
    /// Blocks from `from` to `cut` have moved to the start by `by`.
    Collapsing {
        from: usize,
        by: usize,
        cut: usize,
    },
    /// Blocks from `cut` on have moved to the end by `by`, out of a range from `from`.
    Inserting {
        from: usize,
        by: usize,
        cut: usize,
    },
}

impl View {
    /// The block of the layout that is seen at a place.
    fn source(self, place: usize) -> Option<usize> {
        match self {
            Self::Punched { cut, end } if (cut..end).contains(&place) => None,
            Self::Collapsing { from, by, cut } if place + by >= from && place < cut => {
                match place + by {
                    moved if moved < cut => Some(moved),
                    _ => None,
                }
            }
            Self::Inserting { from, by, cut } if place >= from => match place {
                _ if place < cut => Some(place),
                _ if place < cut + by => None,
                _ => Some(place - by),
            },
            _ => Some(place),
        }
    }
}

/// A state of a file, and the operation that led to it.
#[derive(Debug, Clone)]
struct Step {
    number: u64,
    op: Option<SpaceOp>,
    layout: Layout,
}

/// What a file holds.
#[derive(Debug)]
pub struct FileContent {
    pub bytes: Vec<u8>,
}

impl FileContent {
    /// Reads a file through an open filesystem.
    pub fn read(fs: &Fs, io: &mut impl MetaIo, ino: Ino) -> xtent::Result<Self> {
        let inode = fs.read_inode(io, ino)?;
        let mut bytes = vec![0; at(inode.size)];
        let block = u64::from(fs.geometry().block_bytes);
        for extent in fs.extents(io, &inode)?.as_slice() {
            let start = extent.offset_blocks * block;
            if extent.unwritten || start >= inode.size {
                continue;
            }
            let mut data = vec![0; at(extent.blocks * block)];
            io.read_at(fs.geometry().block_addr(extent.start_block), &mut data)?;
            let len = data.len().min(at(inode.size - start));
            bytes[at(start)..at(start) + len].copy_from_slice(&data[..len]);
        }
        Ok(Self { bytes })
    }
}

/// A file with all of its states.
#[derive(Debug, Clone)]
pub struct FileModel {
    pub id: InodeId,
    block: usize,
    /// The contents of each block, with the numbers of the operations that wrote them.
    contents: Vec<Vec<(u64, Arc<[u8]>)>>,
    steps: Vec<Step>,
}

impl FileModel {
    /// A file with this content; blocks of zeroes have none of their own.
    pub fn new(id: InodeId, block: u64, bytes: &[u8]) -> Self {
        let block = at(block);
        let mut model = Self {
            id,
            block,
            contents: Vec::new(),
            steps: Vec::new(),
        };
        let mut blocks = Vec::new();
        for chunk in bytes.chunks(block) {
            let is_hole = chunk.iter().all(|byte| *byte == 0);
            blocks.push((!is_hole).then_some(model.contents.len()));
            if !is_hole {
                let mut content = chunk.to_vec();
                content.resize(block, 0);
                model.contents.push(vec![(0, content.into())]);
            }
        }
        model.steps.push(Step {
            number: 0,
            op: None,
            layout: Layout {
                size: bytes.len() as u64,
                blocks,
            },
        });
        model
    }

    fn layout(&self) -> &Layout {
        &self.steps.last().unwrap().layout
    }

    /// Its length after the last operation.
    pub fn size(&self) -> u64 {
        self.layout().size
    }

    /// Operations so far.
    pub fn operations(&self) -> usize {
        self.steps.len() - 1
    }

    /// An operation begins; its number is greater than those of all before it. It is done when no
    /// error is noted.
    pub fn begin(&mut self, number: u64, op: &SpaceOp) {
        let mut layout = self.layout().clone();
        let old = layout.size;
        let block = self.block as u64;
        let whole = |range: &Range<u64>| at(range.start.div_ceil(block))..at(range.end / block);
        match op {
            SpaceOp::SetLen(len) => {
                let end = len.next_multiple_of(block).min(old);
                self.zero_parts(number, &layout, &(*len..end.max(*len)));
                layout.size = *len;
            }
            SpaceOp::Allocate(range, keep) => {
                layout.size = if *keep { old } else { old.max(range.end) };
            }
            SpaceOp::Punch(range) | SpaceOp::Zero(range, _) => {
                self.zero_parts(number, &layout, range);
                for index in whole(range) {
                    if let Some(block) = layout.blocks.get_mut(index) {
                        *block = None;
                    }
                }
                if let SpaceOp::Zero(range, false) = op {
                    layout.size = old.max(range.end);
                }
            }
            SpaceOp::Collapse(range) => {
                drop(layout.blocks.drain(whole(range)));
                layout.size -= range.end - range.start;
            }
            SpaceOp::Insert(range) => {
                let whole = whole(range);
                let hole = vec![None; whole.len()];
                layout.blocks.splice(whole.start..whole.start, hole);
                layout.size += range.end - range.start;
            }
            SpaceOp::Write(range, seed) => {
                layout.size = old.max(range.end);
                self.zero_parts(number, &layout, &(old..range.start.max(old)));
                self.write(number, &mut layout, range, *seed);
            }
            SpaceOp::Replace(len, seed) => {
                layout.size = *len;
                layout.blocks = self.new_blocks(number, &data_of(&(0..*len), *seed));
            }
        }
        if !matches!(
            op,
            SpaceOp::Write(..) | SpaceOp::Insert(_) | SpaceOp::Replace(..)
        ) {
            // Behind the end there is data of a write that found no space in the end.
            let size = layout.size;
            self.zero_parts(number, &layout, &(old..size.max(old)));
        }
        let count = at(layout.size.div_ceil(block));
        layout.blocks.resize(count, None);
        self.steps.push(Step {
            number,
            op: Some(op.clone()),
            layout,
        });
    }

    /// Blocks of their own that have this content from the first moment on.
    fn new_blocks(&mut self, number: u64, bytes: &[u8]) -> Vec<Option<usize>> {
        let first = self.contents.len();
        for chunk in bytes.chunks(self.block) {
            let mut content = chunk.to_vec();
            content.resize(self.block, 0);
            self.contents.push(vec![(number, content.into())]);
        }
        (first..self.contents.len()).map(Some).collect()
    }

    /// Writes in place, to blocks that are zero where the file had none.
    fn write(&mut self, number: u64, layout: &mut Layout, range: &Range<u64>, seed: u64) {
        let block = self.block as u64;
        let count = at(layout.size.div_ceil(block));
        layout.blocks.resize(count, None);
        let data = data_of(range, seed);
        for index in range.start / block..range.end.div_ceil(block) {
            let token = *layout.blocks[at(index)].get_or_insert_with(|| {
                self.contents.push(vec![(0, vec![0; self.block].into())]);
                self.contents.len() - 1
            });
            let part = range.start.max(index * block)..range.end.min((index + 1) * block);
            let contents = &mut self.contents[token];
            let mut content = contents.last().unwrap().1.to_vec();
            let from = &data[at(part.start - range.start)..at(part.end - range.start)];
            content[at(part.start - index * block)..][..from.len()].copy_from_slice(from);
            contents.push((number, content.into()));
        }
    }

    /// Zeroes the blocks that a range covers in part, in place.
    fn zero_parts(&mut self, number: u64, layout: &Layout, range: &Range<u64>) {
        let block = self.block as u64;
        for (index, token) in layout.blocks.iter().enumerate() {
            let Some(token) = token else { continue };
            let own = index as u64 * block..(index as u64 + 1) * block;
            let part = own.start.max(range.start)..own.end.min(range.end);
            if part.start >= part.end || part == own {
                continue;
            }
            let contents = &mut self.contents[*token];
            let mut content = contents.last().unwrap().1.to_vec();
            content[at(part.start - own.start)..at(part.end - own.start)].fill(0);
            if *contents.last().unwrap().1 != *content {
                contents.push((number, content.into()));
            }
        }
    }

    /// States between the transactions of an operation that begins at a layout.
    fn between(&self, layout: &Layout, op: &SpaceOp) -> Vec<(View, u64)> {
        let block = self.block as u64;
        let whole = |range: &Range<u64>| at(range.start.div_ceil(block))..at(range.end / block);
        let count = layout.blocks.len();
        let old = layout.size;
        let punched = |range: &Range<u64>| {
            let range = whole(range);
            let cuts = range.start..range.end.min(count).max(range.start);
            cuts.map(move |cut| {
                (
                    View::Punched {
                        cut,
                        end: range.end,
                    },
                    old,
                )
            })
        };
        match op {
            // What a write has written in place is seen as the layout behind it.
            SpaceOp::SetLen(_) | SpaceOp::Allocate(..) | SpaceOp::Write(..) => Vec::new(),
            // One transaction.
            SpaceOp::Replace(..) => Vec::new(),
            SpaceOp::Punch(range) | SpaceOp::Zero(range, _) => punched(range).collect(),
            SpaceOp::Collapse(range) => {
                let (from, by) = (whole(range).end, whole(range).len());
                let moved = (from..=count).map(|cut| (View::Collapsing { from, by, cut }, old));
                punched(range).chain(moved).collect()
            }
            SpaceOp::Insert(range) => {
                let (from, by) = (whole(range).start, whole(range).len());
                let size = old + range.end - range.start;
                let cuts = from..=count;
                cuts.map(|cut| (View::Inserting { from, by, cut }, size))
                    .collect()
            }
        }
    }

    /// Whether a file has a layout, with all that operations to `settled` have written in place,
    /// and any part of that of operations to `newest`.
    fn fits(
        &self,
        found: &FileContent,
        (layout, view, size): (&Layout, View, u64),
        settled: u64,
        newest: u64,
    ) -> bool {
        found.bytes.len() as u64 == size
            && found
                .bytes
                .chunks(self.block)
                .enumerate()
                .all(|(place, chunk)| {
                    let source = view.source(place);
                    match source.and_then(|source| layout.blocks.get(source).copied().flatten()) {
                        None => *chunk == ZEROES[..chunk.len()],
                        Some(token) => self.fits_block(token, chunk, settled, newest),
                    }
                })
    }

    fn fits_block(&self, token: usize, found: &[u8], settled: u64, newest: u64) -> bool {
        let contents = &self.contents[token];
        let first = contents.iter().rposition(|(number, _)| *number <= settled);
        let may_be = &contents[first.unwrap_or(0)..];
        let may_be = may_be
            .iter()
            .take_while(|(number, _)| *number <= newest.max(settled));
        let may_be: Vec<_> = may_be.collect();
        found
            .chunks(SECTOR_BYTES)
            .enumerate()
            .all(|(index, sector)| {
                let start = index * SECTOR_BYTES;
                let has = |content: &[u8]| content[start..start + sector.len()] == *sector;
                may_be.iter().any(|(_, content)| has(content))
            })
    }

    /// The positions in the history of its thread that a file may be at when all operations to
    /// `durable` are promised and no other ones than those to `begun` were begun. Position `2 * n`
    /// is behind operation `n`, the one before it is in the middle of that operation.
    pub fn positions(
        &self,
        found: &FileContent,
        durable: u64,
        begun: u64,
        in_the_middle: bool,
    ) -> BTreeSet<u64> {
        let mut positions = BTreeSet::new();
        for (index, step) in self.steps.iter().enumerate() {
            let next = self
                .steps
                .get(index + 1)
                .filter(|next| next.number <= begun);
            let last = next.map_or(2 * begun, |next| 2 * next.number - 1);
            if last < 2 * durable || step.number > begun {
                continue;
            }
            let whole = (&step.layout, View::Whole, step.layout.size);
            if self.fits(found, whole, step.number, begun) {
                positions.extend((2 * step.number).max(2 * durable)..=last);
            }
            let Some(next) = next.filter(|_| in_the_middle) else {
                continue;
            };
            let op = next.op.as_ref().unwrap();
            if matches!(op, SpaceOp::Replace(..)) {
                if self.fits(
                    found,
                    (&next.layout, View::Whole, next.layout.size),
                    step.number,
                    begun,
                ) {
                    positions.insert(last);
                }
                continue;
            }
            let views = self.between(&step.layout, op);
            let final_size = (&next.layout, View::Whole, step.layout.size);
            let fits_any = views.into_iter().any(|(view, size)| {
                self.fits(found, (&step.layout, view, size), step.number, begun)
            });
            if fits_any
                || self.fits(found, final_size, step.number, begun)
                || self.fits(
                    found,
                    (&next.layout, View::Whole, next.layout.size),
                    step.number,
                    begun,
                )
            {
                positions.insert(last);
            }
        }
        positions
    }

    /// The last operation failed with an error: the file has the state from before it, or one of
    /// those in its middle, which this finds. Whether it does.
    pub fn note_failed(&mut self, found: &FileContent) -> bool {
        let step = self.steps.pop().unwrap();
        let (number, op) = (step.number, step.op.clone().unwrap());
        let before = self.layout().clone();
        let size = before.size;
        let mut views = vec![(&before, View::Whole, size)];
        let between = self.between(&before, &op).into_iter();
        views.extend(between.map(|(view, size)| (&before, view, size)));
        // The last transaction failed, such as one that frees blocks behind the new end.
        views.push((&step.layout, View::Whole, size));
        views.push((&step.layout, View::Whole, step.layout.size));
        for (layout, view, size) in views {
            if self.fits(found, (layout, view, size), number - 1, number) {
                let count = at(size.div_ceil(self.block as u64));
                let seen = |place| layout.blocks.get(view.source(place)?).copied().flatten();
                let blocks = (0..count).map(seen).collect();
                let layout = Layout { size, blocks };
                self.forget_unwritten(number, &layout, found);
                self.steps.push(Step {
                    number,
                    op: Some(op),
                    layout,
                });
                return true;
            }
        }
        false
    }

    /// Contents that a failed operation did not come to write.
    fn forget_unwritten(&mut self, number: u64, layout: &Layout, found: &FileContent) {
        for (chunk, token) in found.bytes.chunks(self.block).zip(&layout.blocks) {
            let Some(token) = token else { continue };
            let contents = &mut self.contents[*token];
            contents.retain(|(of, content)| *of != number || content[..chunk.len()] == *chunk);
        }
    }

    /// Whether a file is as the last operation left it.
    pub fn is_newest(&self, found: &FileContent) -> bool {
        let newest = self.steps.last().unwrap().number;
        let whole = (self.layout(), View::Whole, self.layout().size);
        self.fits(found, whole, newest, newest)
    }
}
