//! Requests for events, and the handling of those that were reported.

use super::admin::{Admin, AdminFailure};
use super::controller::Controller;
use super::events::Event;
use super::info::{ControllerInfo, NamespaceInfo};
use super::logs::{FirmwareSlots, SmartInfo};
use super::spec::{
    CHANGED_NAMESPACES, EVENT_ERROR, EVENT_FIRMWARE_ACTIVATION, EVENT_NAMESPACE_CHANGED,
    EVENT_NOTICE, EVENT_SMART, EventWord, LOG_CHANGED_NAMESPACES, NOTICE_FIRMWARE,
    NOTICE_NAMESPACE,
};
use crate::error::Result;

/// The critical warnings that are asked for: those that every version names.
const WARNINGS_WANTED: u32 = 0x1f;

impl Admin {
    /// Sends the event requests that are missing, and does not wait.
    pub(super) fn request_events(&mut self, now_ns: u64) {
        while let Some(cid) = self.requests.next(now_ns) {
            self.send_event_request(cid);
        }
    }

    /// Whether there is anything for [`Controller::hear`].
    fn has_news(&self) -> bool {
        self.has_completions() || !self.requests.raised.is_empty() || self.requests.missing()
    }
}

impl Controller {
    /// Events since the last call, oldest first. Polls the admin queue unless another thread uses
    /// it; waits for nothing but the controller's answers.
    pub fn events(&self) -> Vec<Event> {
        self.look_for_events();
        self.kept().events.drain(..).collect()
    }

    /// Polls the admin queue, unless another thread uses it. May reset the controller: when its
    /// state is inconsistent, or when a namespace in use was replaced.
    pub(super) fn look_for_events(&self) {
        if let Some(mut admin) = self.try_admin()
            && !self.is_gone()
            && admin.has_news()
            && !matches!(self.hear(&mut admin), Ok(false))
        {
            // Queues see the new generation, or that the controller is gone.
            let _ = self.reset(&mut admin);
        }
    }

    /// Looks into the events that came, and asks for the next. True when a namespace in use is not
    /// what it was.
    fn hear(&self, admin: &mut Admin) -> Result<bool, AdminFailure> {
        admin.reap_events(&self.counters)?;
        let mut replaced = false;
        // No more than were outstanding: none is sent before all are looked into.
        while let Some(word) = admin.requests.raised.pop_front() {
            self.counters.events.add(1);
            replaced |= self.explain(admin, word)?;
        }
        admin.request_events(self.port.device.now_ns());
        Ok(replaced)
    }

    /// Reads the log page that an event names, which ends its masking, and keeps the event.
    fn explain(&self, admin: &mut Admin, word: EventWord) -> Result<bool, AdminFailure> {
        let event = match (word.kind(), word.information()) {
            (EVENT_SMART, _) => {
                let smart = unless_refused(self.read_smart(admin))?;
                let smart = smart.as_ref();
                Event::Health {
                    critical_warning: smart.map_or(0, |s| s.critical_warning.bits()),
                    temperature_k: smart.map(|s: &SmartInfo| s.temperature_k),
                    available_spare: smart.map(|s| s.available_spare),
                }
            }
            (EVENT_ERROR, information) => {
                let entries = unless_refused(self.read_errors(admin, 1))?;
                let newest = entries.as_deref().and_then(<[_]>::first);
                Event::Error {
                    information,
                    status: newest.map(|entry| (entry.status.sct(), entry.status.sc())),
                    queue: newest.map(|entry| entry.queue),
                }
            }
            (EVENT_NOTICE, EVENT_NAMESPACE_CHANGED) => return self.namespaces_changed(admin),
            (EVENT_NOTICE, EVENT_FIRMWARE_ACTIVATION) => {
                let slots = unless_refused(self.read_firmware(admin))?;
                Event::FirmwareActivation {
                    revision: slots.map(active_revision).unwrap_or_default(),
                }
            }
            // Its log page is not read: the effect of that is unknown.
            (kind, information) => Event::Other {
                kind,
                information,
                log_page: word.log_page(),
            },
        };
        self.kept().push(event);
        Ok(false)
    }

    fn namespaces_changed(&self, admin: &mut Admin) -> Result<bool, AdminFailure> {
        let len_bytes = CHANGED_NAMESPACES * 4;
        let list = unless_refused(self.log_page(admin, LOG_CHANGED_NAMESPACES, len_bytes, 0))?;
        let named: Option<Vec<u32>> = list.map(|bytes| {
            let ids = bytes.chunks_exact(4);
            ids.map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]))
                .take_while(|&id| id != 0)
                .collect()
        });
        // All ones: more changed than the list holds. Empty: another host has read it.
        let named = named.filter(|ids| ids.first().is_some_and(|&id| id != u32::MAX));
        let before = self.info();
        let mut now = ControllerInfo::clone(&before);
        self.identify_again(admin, &mut now, named.as_deref())?;
        Ok(self.adopt(admin, now))
    }

    /// Stores `now` as the controller's properties, and records an event for each namespace that
    /// changed. True when one in use was replaced: the controller must then be reset, so that no
    /// command made for the old one still runs.
    pub(super) fn adopt(&self, admin: &Admin, now: ControllerInfo) -> bool {
        let before = self.info();
        let mut replaced = false;
        let mut changed = false;
        let mut kept = self.kept();
        for namespace in &before.namespaces {
            let after = now.namespace(namespace.nsid);
            if let Some(event) = difference(namespace, after) {
                changed = true;
                replaced |= !matches!(event, Event::NamespaceResized { .. })
                    && admin.is_used(namespace.nsid);
                kept.push(event);
            }
            changed |= after.is_some_and(|after| after.read_only != namespace.read_only);
        }
        for namespace in &now.namespaces {
            if before.namespace(namespace.nsid).is_none() {
                kept.push(Event::NamespaceAdded {
                    nsid: namespace.nsid,
                    len_bytes: namespace.len_bytes(),
                });
            }
        }
        drop(kept);
        self.set_info(now);
        if changed {
            self.tell_queues();
        }
        replaced
    }

    /// The events to ask for, by what the controller offers.
    pub(super) fn events_wanted(info: &ControllerInfo) -> [u32; 2] {
        let notices = info.optional_events & (NOTICE_NAMESPACE | NOTICE_FIRMWARE);
        [WARNINGS_WANTED | notices, notices]
    }
}

/// What happened to a namespace, if anything did that its users must know.
fn difference(before: &NamespaceInfo, after: Option<&NamespaceInfo>) -> Option<Event> {
    let nsid = before.nsid;
    match after {
        None => Some(Event::NamespaceRemoved { nsid }),
        Some(after) if !before.is_still(after) => Some(Event::NamespaceReplaced {
            nsid,
            block_bytes: after.block_bytes,
        }),
        Some(after) if after.blocks == 0 && before.blocks != 0 => {
            Some(Event::NamespaceRemoved { nsid })
        }
        Some(after) => (before.blocks != after.blocks).then(|| Event::NamespaceResized {
            nsid,
            from_bytes: before.len_bytes(),
            to_bytes: after.len_bytes(),
        }),
    }
}

fn active_revision(slots: FirmwareSlots) -> String {
    let active = slots.next.unwrap_or(slots.active);
    let found = slots
        .revisions
        .into_iter()
        .find(|(slot, _)| *slot == active);
    found.map(|(_, revision)| revision).unwrap_or_default()
}

/// Turns a refused command into `None`; other failures stay errors.
fn unless_refused<T>(result: Result<T, AdminFailure>) -> Result<Option<T>, AdminFailure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(AdminFailure::Status(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}
