//! Asynchronous events (section 5.2): requests that wait on the admin queue, and their completions.
//!
//! No thread waits for an event. Each owner of a queue checks when it reads the clock, and a
//! program checks when it calls [`events`](super::Controller::events). A device that raises events
//! without end is handled [`MOST_A_SECOND`] times a second.

use std::collections::VecDeque;
use std::fmt;

use super::queue::CqEntry;
use super::spec::EventWord;

/// Most event requests outstanding.
pub(super) const MOST_REQUESTS: usize = 4;

/// Most requests that are sent in a second.
const MOST_A_SECOND: u32 = 8;
const SECOND_NS: u64 = 1_000_000_000;

/// Command ids of event requests have this bit; those of other admin commands do not.
pub(super) const REQUEST_CID: u16 = 1 << 15;

/// Events that are kept for the program.
const MOST_KEPT: usize = 256;

/// Something that a controller reported without being asked.
///
/// ```no_run
/// # use xtent::target::{Event, Target, TargetOptions};
/// # fn main() -> xtent::Result<()> {
/// let target = Target::open("pci:0000:01:00.0", &TargetOptions::new())?;
/// for event in target.events() {
///     match event {
///         Event::NamespaceRemoved { nsid } => println!("namespace {nsid} is gone"),
///         other => println!("{other}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// SMART: a critical warning.
    Health {
        /// Critical Warning, byte 0 of the SMART log page (bit 0 spare, 1 temperature, 2
        /// reliability, 3 read-only, 4 backup, 5 persistent memory); 0 when the warning has passed,
        /// or the log could not be read.
        critical_warning: u8,
        /// Composite temperature in kelvins; `None` where it is not known.
        temperature_k: Option<u16>,
        /// Percent of the spare that is left; `None` where it is not known.
        available_spare: Option<u8>,
    },
    /// The controller met an error that is of no command, or of the host's own making.
    Error {
        /// The kind of error: event information of section 5.2.1.
        information: u8,
        /// Status code type and status code of the newest entry of the error log; `None` where the
        /// log could not be read.
        status: Option<(u8, u8)>,
        /// Submission queue of that entry.
        queue: Option<u16>,
    },
    /// There is a namespace that was not there.
    NamespaceAdded {
        /// Its id.
        nsid: u32,
        /// Its size in bytes.
        len_bytes: u64,
    },
    /// A namespace is not there any more.
    NamespaceRemoved {
        /// Its id.
        nsid: u32,
    },
    /// A namespace has another size.
    NamespaceResized {
        /// Its id.
        nsid: u32,
        /// Its size before, in bytes.
        from_bytes: u64,
        /// Its size now, in bytes.
        to_bytes: u64,
    },
    /// A namespace has another format, or another namespace has its id. What was open on it is of
    /// no use.
    NamespaceReplaced {
        /// Its id.
        nsid: u32,
        /// Bytes of a block now.
        block_bytes: u32,
    },
    /// New firmware starts to run.
    FirmwareActivation {
        /// The revision in the active slot; empty where it is not known.
        revision: String,
    },
    /// An event that has no name here.
    Other {
        /// Asynchronous event type (section 5.2.1).
        kind: u8,
        /// Asynchronous event information.
        information: u8,
        /// The log page that has details.
        log_page: u8,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Health {
                critical_warning,
                temperature_k,
                available_spare,
            } => {
                let names = super::critical_warning_names(*critical_warning);
                match names.is_empty() {
                    true => f.write_str("health: a warning that has passed")?,
                    false => write!(f, "health: critical warning {}", names.join(", "))?,
                }
                if let Some(kelvins) = temperature_k {
                    write!(f, ", {} C", i32::from(*kelvins) - 273)?;
                }
                if let Some(spare) = available_spare {
                    write!(f, ", {spare} % spare left")?;
                }
                Ok(())
            }
            Self::Error {
                information,
                status,
                queue,
            } => {
                write!(f, "an error was reported (information {information:#04x})")?;
                match (status, queue) {
                    (Some((sct, sc)), Some(queue)) => {
                        let name = super::spec::status_name(*sct, *sc);
                        write!(f, ": {name} on queue {queue}")
                    }
                    _ => Ok(()),
                }
            }
            Self::NamespaceAdded { nsid, len_bytes } => {
                write!(f, "namespace {nsid} was added, with {len_bytes} bytes")
            }
            Self::NamespaceRemoved { nsid } => write!(f, "namespace {nsid} was taken away"),
            Self::NamespaceResized {
                nsid,
                from_bytes,
                to_bytes,
            } => {
                let how = if to_bytes > from_bytes {
                    "grew"
                } else {
                    "shrank"
                };
                write!(
                    f,
                    "namespace {nsid} {how} from {from_bytes} to {to_bytes} bytes"
                )
            }
            Self::NamespaceReplaced { nsid, block_bytes } => write!(
                f,
                "namespace {nsid} is not what it was (blocks of {block_bytes} bytes now): open it again"
            ),
            Self::FirmwareActivation { revision } => {
                write!(f, "firmware is being activated {revision}")
            }
            Self::Other {
                kind,
                information,
                log_page,
            } => write!(
                f,
                "an event of type {kind}, information {information:#04x}, log page {log_page:#04x}"
            ),
        }
    }
}

/// Events for the program: the newest, and how many were lost.
#[derive(Debug, Default)]
pub(super) struct EventBacklog {
    pub(super) events: VecDeque<Event>,
    lost: u64,
}

impl EventBacklog {
    pub(super) fn push(&mut self, event: Event) {
        if self.events.len() >= MOST_KEPT {
            self.events.pop_front();
            self.lost += 1;
        }
        self.events.push_back(event);
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

/// The event requests on the admin queue.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Ids of those outstanding.
    outstanding: [Option<u16>; MOST_REQUESTS],
    /// How many the controller and the ring bear.
    wanted: usize,
    sequence: u16,
    /// Ends that were not looked into: no more than there were requests.
    pub(super) raised: VecDeque<EventWord>,
    second_ns: u64,
    sent_this_second: u32,
}

impl Requests {
    /// After a controller reset: none is outstanding.
    pub(super) fn restart(&mut self) {
        self.outstanding = [None; MOST_REQUESTS];
        self.wanted = 0;
        self.raised.clear();
    }

    pub(super) fn want(&mut self, count: usize) {
        self.wanted = count.min(MOST_REQUESTS);
    }

    /// Takes the end of a request; false when there is no such request.
    pub(super) fn take(&mut self, entry: CqEntry, word: u32) -> bool {
        let mut slots = self.outstanding.iter_mut();
        let Some(slot) = slots.find(|slot| **slot == Some(entry.cid())) else {
            return false;
        };
        *slot = None;
        if entry.status().is_success() {
            self.raised.push_back(EventWord(word));
        } else {
            // Aborted, or over the controller's limit: not sent again.
            self.wanted = self.wanted.saturating_sub(1);
        }
        true
    }

    pub(super) fn missing(&self) -> bool {
        self.outstanding.iter().flatten().count() < self.wanted
    }

    /// The id of the next request to send; `None` when there are enough, or enough for this second.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<u16> {
        if !self.missing() {
            return None;
        }
        if now_ns.saturating_sub(self.second_ns) >= SECOND_NS {
            self.second_ns = now_ns;
            self.sent_this_second = 0;
        }
        if self.sent_this_second >= MOST_A_SECOND {
            return None;
        }
        self.sent_this_second += 1;
        self.sequence = (self.sequence + 1) & 0x3fff;
        let slot = self.outstanding.iter_mut().find(|slot| slot.is_none())?;
        *slot = Some(REQUEST_CID | self.sequence);
        *slot
    }
}
