//! What a file must hold: now, and after a loss of power.

/// A set of byte values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Values([u64; 4]);

impl Values {
    fn only(value: u8) -> Self {
        let mut values = Self::default();
        values.add(value);
        values
    }

    fn add(&mut self, value: u8) {
        self.0[usize::from(value / 64)] |= 1 << (value % 64);
    }

    fn has(&self, value: u8) -> bool {
        self.0[usize::from(value / 64)] & 1 << (value % 64) != 0
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) now: Vec<u8>,
    /// For each byte up to the longest length since it was synced: what it may be after a loss of
    /// power.
    legal: Vec<Values>,
    /// The least and the most that the length may be then.
    least: usize,
    most: usize,
}

impl Model {
    /// A file that holds this, durably.
    pub(crate) fn new(content: Vec<u8>) -> Self {
        let mut model = Self {
            now: content,
            ..Self::default()
        };
        model.synced();
        model
    }

    fn cover(&mut self, len: usize) {
        // What was behind the end reads as zeroes.
        if self.legal.len() < len {
            self.legal.resize(len, Values::only(0));
        }
    }

    pub(crate) fn write(&mut self, pos: usize, data: &[u8]) {
        let end = pos + data.len();
        if data.is_empty() {
            return;
        }
        self.cover(end);
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[pos..end].copy_from_slice(data);
        for (legal, value) in self.legal[pos..end].iter_mut().zip(data) {
            legal.add(*value);
        }
        self.most = self.most.max(end);
    }

    pub(crate) fn set_len(&mut self, len: usize) {
        self.cover(len.max(self.now.len()));
        let from = len.min(self.now.len());
        for legal in &mut self.legal[from..] {
            legal.add(0);
        }
        self.now.resize(len, 0);
        self.least = self.least.min(len);
        self.most = self.most.max(len);
    }

    /// Everything is durable.
    pub(crate) fn synced(&mut self) {
        self.legal = self.now.iter().map(|value| Values::only(*value)).collect();
        self.least = self.now.len();
        self.most = self.now.len();
    }

    /// The error in content found after a power cut, if any.
    pub(crate) fn recovered(&self, found: &[u8]) -> Option<String> {
        if found.len() < self.least || found.len() > self.most {
            return Some(format!(
                "{} bytes long, and should have {} to {}",
                found.len(),
                self.least,
                self.most
            ));
        }
        let bad = found
            .iter()
            .zip(&self.legal)
            .position(|(value, legal)| !legal.has(*value))?;
        Some(format!(
            "byte {bad} is {}, which it never was since the last sync",
            found[bad]
        ))
    }
}
