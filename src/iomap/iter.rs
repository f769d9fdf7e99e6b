//! The iterator: begin, body, end, advance.
//!
//! As `iomap_iter` of Linux (Documentation/filesystems/iomap/design.rst, "struct iomap_iter"): a
//! mapping covers at least the first byte asked for; the body says how much of it was done;
//! [`Ops::end`] hears that number even when the body came short or failed; no progress ends the
//! loop.

use super::{IterFlags, Mapping, MappingKind, Ops};
use crate::error::{Error, ErrorKind, Result};

/// What the body of an iteration works on: the part of a mapping that was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// First file byte.
    pub pos: u64,
    /// Bytes, at least 1: clipped to both the mapping and the rest of the operation.
    pub len: u64,
    /// The mapping as the filesystem gave it; it covers all of the span.
    pub mapping: &'a Mapping,
    /// Where old data is to be read from, when that is another place (copy-on-write).
    pub source: Option<&'a Mapping>,
}

/// A file range and how far an operation came in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iter {
    /// Next file byte.
    pub pos: u64,
    /// Bytes left.
    pub remaining: u64,
    /// Operation on the range.
    pub flags: IterFlags,
}

impl Iter {
    /// An iteration over `len` bytes from `pos`. A range that runs past 64 bits is cut there.
    #[inline]
    pub fn new(pos: u64, len: u64, flags: IterFlags) -> Self {
        Self {
            pos,
            remaining: len.min(u64::MAX - pos),
            flags,
        }
    }

    /// One mapping: asks for it, has `body` work on it, tells the filesystem how much was done,
    /// advances by that. `true` when there is more to do; `false` at the range's end or when `body`
    /// made no progress. After an error [`Iter::pos`] says how far the operation came.
    ///
    /// # Errors
    /// The filesystem's or the body's; [`ErrorKind::Corrupt`] for a mapping that does not cover the
    /// position.
    #[inline]
    pub fn step<O: Ops>(
        &mut self,
        ops: &mut O,
        body: impl FnOnce(&mut O, Span<'_>) -> Result<u64>,
    ) -> Result<bool> {
        if self.remaining == 0 {
            return Ok(false);
        }
        let (mapping, source) = ops.begin(self.pos, self.remaining, self.flags)?;
        let (len, result) = match self.covered(&mapping) {
            Some(len) => {
                let span = Span {
                    pos: self.pos,
                    len,
                    mapping: &mapping,
                    source: source.as_ref(),
                };
                (len, body(ops, span))
            }
            None => (0, Err(self.uncovered(&mapping))),
        };
        // A body that claims more than it was given cannot be believed at all.
        let result = match result {
            Ok(done) if done > len => Err(self.too_much(done, len)),
            other => other,
        };
        let done = match &result {
            Ok(done) => *done,
            Err(_) => 0,
        };
        let ended = ops.end(self.pos, len, done, self.flags, &mapping);
        self.pos += done;
        self.remaining -= done;
        result?;
        ended?;
        Ok(done > 0 && self.remaining > 0)
    }

    /// Steps until the range is done, an error, or no progress. Returns the bytes done by this
    /// call.
    ///
    /// # Errors
    /// As [`Iter::step`]; [`Iter::pos`] says how far the operation came.
    pub fn run<O: Ops>(
        &mut self,
        ops: &mut O,
        mut body: impl FnMut(&mut O, Span<'_>) -> Result<u64>,
    ) -> Result<u64> {
        let start = self.pos;
        while self.step(ops, &mut body)? {}
        Ok(self.pos - start)
    }

    /// Bytes of the mapping from the position on, clipped to the rest; `None` when the position is
    /// not inside, or the mapping's addresses run past 64 bits.
    #[inline]
    fn covered(&self, mapping: &Mapping) -> Option<u64> {
        let skipped = self.pos.checked_sub(mapping.offset)?;
        let left = mapping.length.checked_sub(skipped)?;
        mapping.offset.checked_add(mapping.length)?;
        if matches!(mapping.kind, MappingKind::Mapped | MappingKind::Unwritten) {
            mapping.addr.checked_add(mapping.length)?;
        }
        (left > 0).then(|| left.min(self.remaining))
    }

    #[cold]
    fn uncovered(&self, mapping: &Mapping) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "the filesystem's mapping of {} bytes at {} does not cover the position",
                mapping.length, mapping.offset
            ),
        )
        .at_offset(self.pos)
    }

    #[cold]
    fn too_much(&self, done: u64, len: u64) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            format!("{done} bytes were said to be done of a mapping of {len}"),
        )
        .at_offset(self.pos)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestLayout;
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn spans_are_clipped_to_mapping_and_range() {
        let mut layout = TestLayout::new(&[
            (MappingKind::Mapped, 4096),
            (MappingKind::Hole, 8192),
            (MappingKind::Unwritten, 4096),
        ]);
        let mut seen = Vec::new();
        let mut iter = Iter::new(1000, 12_000, IterFlags::REPORT);
        let done = iter
            .run(&mut layout, |_, span| {
                seen.push((span.pos, span.len, span.mapping.kind));
                Ok(span.len)
            })
            .unwrap();
        assert_eq!(done, 12_000);
        let expected = [
            (1000, 3096, MappingKind::Mapped),
            (4096, 8192, MappingKind::Hole),
            (12_288, 712, MappingKind::Unwritten),
        ];
        assert_eq!(seen, expected);
        assert_eq!(
            layout.ends,
            [(1000, 3096, 3096), (4096, 8192, 8192), (12_288, 712, 712)]
        );
    }

    #[test]
    fn a_short_body_continues_inside_the_mapping_and_no_progress_ends() {
        let mut layout = TestLayout::new(&[(MappingKind::Mapped, 4096)]);
        let mut calls = 0;
        let mut iter = Iter::new(0, 4096, IterFlags::empty());
        let done = iter
            .run(&mut layout, |_, _| {
                calls += 1;
                Ok(if calls < 3 { 512 } else { 0 })
            })
            .unwrap();
        assert_eq!((done, calls, iter.pos), (1024, 3, 1024));
        assert_eq!(
            layout.ends,
            [(0, 4096, 512), (512, 3584, 512), (1024, 3072, 0)]
        );
    }

    #[test]
    fn end_hears_of_a_failed_body_and_its_own_error_comes_second() {
        let mut layout = TestLayout::new(&[(MappingKind::Mapped, 4096)]);
        layout.end_error = Some(ErrorKind::System);
        let mut iter = Iter::new(0, 4096, IterFlags::WRITE);
        let error = iter
            .step(&mut layout, |_, _| Err(Error::new(ErrorKind::Io, "x")))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(layout.ends, [(0, 4096, 0)]);
        let error = iter.step(&mut layout, |_, span| Ok(span.len)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::System);
        assert_eq!(
            iter.pos, 4096,
            "what was done counts, though its end failed"
        );
    }

    #[test]
    fn a_body_that_claims_too_much_is_not_believed() {
        let mut layout =
            TestLayout::new(&[(MappingKind::Mapped, 4096), (MappingKind::Mapped, 4096)]);
        let mut iter = Iter::new(0, 8192, IterFlags::empty());
        assert!(iter.step(&mut layout, |_, span| Ok(span.len + 1)).is_err());
        assert_eq!(layout.ends, [(0, 4096, 0)]);
        assert_eq!(iter.pos, 0);
    }

    /// Answers with whatever the generator says.
    struct Hostile(SmallRng, u64, u64);

    impl Ops for Hostile {
        fn begin(&mut self, pos: u64, _: u64, _: IterFlags) -> Result<(Mapping, Option<Mapping>)> {
            self.1 += 1;
            let rng = &mut self.0;
            let near = |rng: &mut SmallRng| match rng.random_range(0..6) {
                0 => u64::MAX,
                1 => rng.random(),
                2 => 0,
                3 => pos,
                _ => pos.saturating_sub(rng.random_range(0..64)),
            };
            let kinds = [
                MappingKind::Hole,
                MappingKind::Delalloc,
                MappingKind::Mapped,
                MappingKind::Unwritten,
                MappingKind::Inline,
            ];
            let mapping = Mapping {
                addr: near(rng),
                offset: near(rng),
                length: match rng.random_range(0..4) {
                    0 => rng.random(),
                    1 => u64::MAX,
                    _ => rng.random_range(0..256),
                },
                kind: kinds[rng.random_range(0..5)],
                flags: super::super::MapFlags::empty(),
                cookie: 0,
            };
            if rng.random_range(0..20) == 0 {
                self.1 -= 1;
                return Err(Error::new(ErrorKind::Io, "begin"));
            }
            Ok((mapping, None))
        }

        fn end(&mut self, _: u64, len: u64, done: u64, _: IterFlags, _: &Mapping) -> Result<()> {
            assert!(done <= len);
            self.2 += 1;
            if self.0.random_range(0..20) == 0 {
                return Err(Error::new(ErrorKind::Io, "end"));
            }
            Ok(())
        }
    }

    #[test]
    fn no_mapping_whatever_leads_out_of_the_range() {
        for seed in 0..2000 {
            let mut ops = Hostile(SmallRng::seed_from_u64(seed), 0, 0);
            let start = if seed % 3 == 0 { u64::MAX - 4096 } else { seed };
            let mut iter = Iter::new(start, 4096, IterFlags::REPORT);
            let mut body = SmallRng::seed_from_u64(!seed);
            let result = iter.run(&mut ops, |_, span| {
                let inside = span.pos - span.mapping.offset + span.len <= span.mapping.length;
                assert!(span.len > 0 && inside, "seed {seed}: {span:?}");
                assert!(span.pos >= start && span.pos - start + span.len <= 4096);
                match body.random_range(0..8) {
                    0 => Err(Error::new(ErrorKind::Io, "body")),
                    1 => Ok(body.random()),
                    _ => Ok(body.random_range(0..=span.len)),
                }
            });
            assert_eq!(ops.1, ops.2, "seed {seed}: every begin has its end");
            assert!(iter.pos - start <= 4096, "seed {seed}");
            if let Ok(done) = result {
                assert_eq!(done, iter.pos - start, "seed {seed}");
            }
        }
    }
}
