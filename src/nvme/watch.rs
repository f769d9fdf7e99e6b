//! State of a queue pair for the deadlines of its commands and for recovery.

use std::time::Duration;

use super::controller::QueueOptions;
use super::info::NamespaceInfo;
use super::port::nanoseconds;

/// The watch looks at least this often, and at a sixteenth of the deadline where that is more
/// often.
const LONGEST_LOOK: Duration = Duration::from_millis(250);

/// Nothing coming for this long, a controller with shadow doorbells is called again; then for twice
/// as long, and so on.
pub(super) const FIRST_PATIENCE_NS: u64 = 2_000_000;

/// What the slow side of a queue pair keeps.
#[derive(Debug)]
pub(super) struct PairWatch {
    pub(super) timeout_ns: u64,
    /// Between two looks.
    pub(super) look_ns: u64,
    pub(super) next_look_ns: u64,
    /// When shadow doorbells are rung again by their registers, unless the completion queue has
    /// gone on from where it was; and the patience in between.
    pub(super) call_again_ns: u64,
    pub(super) called_at: u32,
    pub(super) patience_ns: u64,
    /// Where the completion queue was when commands were looked through last; and whether one was
    /// found late that may have ended since, so that this is looked into once more.
    pub(super) looked_at: u32,
    pub(super) reap_first: bool,
    /// Where it was when there was nothing to do last, and how many times in a row.
    pub(super) relaxed_at: u32,
    pub(super) silent: u32,
    /// How often one command is sent again.
    pub(super) retries: u8,
    /// Polls that needed attention.
    pub(super) calls: u32,
    /// Stale completions in this generation.
    pub(super) stale: u32,
    /// The device broke the protocol, or does not answer: the controller must be reset before
    /// anything of it is believed.
    pub(super) must_reset: bool,
    /// The controller is gone, and all that was outstanding has been ended.
    pub(super) gone: bool,
    /// The namespace, as it was when the queue was opened.
    pub(super) namespace: NamespaceInfo,
    /// It is not that any more: the queue has ended as if the controller were gone.
    pub(super) replaced: bool,
    /// The queue was opened for reading only.
    pub(super) read_only: bool,
}

impl PairWatch {
    pub(super) fn new(options: &QueueOptions, namespace: &NamespaceInfo) -> Self {
        let timeout_ns = nanoseconds(options.timeout);
        Self {
            timeout_ns,
            look_ns: (timeout_ns / 16).min(nanoseconds(LONGEST_LOOK)),
            next_look_ns: 0,
            call_again_ns: 0,
            called_at: u32::MAX,
            patience_ns: FIRST_PATIENCE_NS,
            looked_at: u32::MAX,
            reap_first: false,
            relaxed_at: u32::MAX,
            silent: 0,
            retries: options.retries,
            calls: 0,
            stale: 0,
            must_reset: false,
            gone: false,
            namespace: namespace.clone(),
            replaced: false,
            read_only: options.read_only,
        }
    }

    /// One more round without anything to do, the completion queue being at `head`; how many it
    /// were before, since something came.
    pub(super) fn silent_rounds(&mut self, head: u32) -> u32 {
        let before = if head == self.relaxed_at {
            self.silent.saturating_add(1)
        } else {
            self.relaxed_at = head;
            0
        };
        self.silent = before;
        before
    }

    /// Looks at the next occasion.
    pub(super) fn look_soon(&mut self) {
        self.next_look_ns = 0;
    }

    /// Whether a reset is due, or the controller is gone: no caller should wait for the device
    /// then.
    pub(super) fn is_busy(&self) -> bool {
        self.must_reset || self.gone
    }

    /// How long a sleep may be: until the next look, or until shadow doorbells are rung again.
    pub(super) fn longest_sleep(&self, shadowed: bool) -> Duration {
        let patience_ns = if shadowed { self.patience_ns } else { u64::MAX };
        Duration::from_nanos(self.look_ns.min(patience_ns))
    }

    /// Of the namespace.
    pub(super) fn nsid(&self) -> u32 {
        self.namespace.nsid
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_nanos(self.timeout_ns)
    }
}
