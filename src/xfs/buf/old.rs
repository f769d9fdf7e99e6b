//! The content of a buffer from before its first change in a transaction.

use std::ops::Range;

/// The old content of a buffer, as far as it may have been changed since.
#[derive(Debug)]
pub(in super::super) enum OldContent {
    /// All of it.
    Whole(Box<[u8]>),
    /// That of some inodes of a cluster, with where each begins: a cluster is large, and most
    /// transactions change one inode.
    Inodes(Vec<(usize, Box<[u8]>)>),
}

impl Default for OldContent {
    /// That of nothing.
    fn default() -> Self {
        Self::Inodes(Vec::new())
    }
}

/// Memory of old contents that are not needed any more, for the next ones.
#[derive(Debug, Default)]
pub(in super::super) struct SpareContents(Vec<Box<[u8]>>);

impl SpareContents {
    /// The most that are kept: a transaction changes few blocks.
    const MOST: usize = 16;

    /// A copy of a content.
    pub(in super::super) fn copy(&mut self, content: &[u8]) -> Box<[u8]> {
        match self.0.pop() {
            Some(mut memory) if memory.len() == content.len() => {
                memory.copy_from_slice(content);
                memory
            }
            _ => content.into(),
        }
    }

    /// Keeps the memory of an old content.
    pub(in super::super) fn keep(&mut self, old: OldContent) {
        if let OldContent::Whole(memory) = old
            && self.0.len() < Self::MOST
        {
            self.0.push(memory);
        }
    }
}

impl OldContent {
    /// Keeps a range of the content, which has not been changed yet if it is not kept already.
    pub(in super::super) fn keep(&mut self, content: &[u8], range: Range<usize>) {
        let Self::Inodes(kept) = self else {
            return;
        };
        if kept.iter().all(|(start, _)| *start != range.start)
            && let Some(old) = content.get(range.clone())
        {
            kept.push((range.start, Box::from(old)));
        }
    }

    /// Makes it the old content of all of the buffer.
    pub(in super::super) fn keep_whole(&mut self, content: &[u8]) {
        if let Self::Inodes(kept) = self {
            let kept = Self::Inodes(std::mem::take(kept));
            *self = Self::Whole(kept.into_whole(content));
        }
    }

    /// The parts that are kept, with where each begins.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let (whole, inodes) = match self {
            Self::Whole(old) => (Some((0, &**old)), &[][..]),
            Self::Inodes(kept) => (None, &**kept),
        };
        let inodes = inodes.iter().map(|(start, old)| (*start, &**old));
        whole.into_iter().chain(inodes)
    }

    /// Whether the content is as it was.
    pub(super) fn is_in(&self, content: &[u8]) -> bool {
        self.parts()
            .all(|(start, old)| content.get(start..start.saturating_add(old.len())) == Some(old))
    }

    /// Puts the old content back.
    pub(in super::super) fn restore(self, content: &mut Box<[u8]>) {
        match self {
            Self::Whole(old) => *content = old,
            Self::Inodes(kept) => {
                for (start, old) in kept {
                    let now = content.get_mut(start..start.saturating_add(old.len()));
                    if let Some(now) = now {
                        now.copy_from_slice(&old);
                    }
                }
            }
        }
    }

    /// The old content of all of the buffer, whose content is this now.
    pub(super) fn into_whole(self, content: &[u8]) -> Box<[u8]> {
        match self {
            Self::Whole(old) => old,
            inodes @ Self::Inodes(_) => {
                let mut whole = Box::from(content);
                inodes.restore(&mut whole);
                whole
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_put_back_and_nothing_else() {
        let first: Box<[u8]> = (0..64).collect();
        let mut content = first.clone();
        let mut old = OldContent::Inodes(Vec::new());
        old.keep(&content, 16..32);
        old.keep(&content, 48..64);
        assert!(old.is_in(&content));
        content[20] = 99;
        assert!(!old.is_in(&content));
        // Kept once: not the changed content.
        old.keep(&content, 16..32);
        content[50] = 98;
        old.keep_whole(&content);
        // From now on it knows of changes anywhere.
        content[0] = 97;
        assert!(!old.is_in(&content));
        assert_eq!(old.parts().count(), 1);
        old.restore(&mut content);
        assert_eq!(content, first);
    }

    #[test]
    fn the_whole_content_comes_from_parts() {
        let mut content: Box<[u8]> = vec![1; 64].into();
        let mut old = OldContent::Inodes(Vec::new());
        old.keep(&content, 32..48);
        content[32..48].fill(2);
        assert_eq!(*old.into_whole(&content), [1; 64]);
    }
}
