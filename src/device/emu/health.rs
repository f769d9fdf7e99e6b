//! What the controller knows and tells of itself: log pages and asynchronous events (sections 5.2
//! and 5.16).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromZeros, IntoBytes};

use super::controller::{CommandEnd, EmuController};
use super::identify;
use super::offer::{ERROR_LOG_ENTRIES, EVENT_REQUESTS};
use crate::nvme::spec::{
    CHANGED_NAMESPACES, Command, CriticalWarning, EVENT_NAMESPACE_CHANGED, EVENT_NOTICE,
    EVENT_SMART, EVENT_SMART_RELIABILITY, EVENT_SMART_SPARE, EVENT_SMART_TEMPERATURE,
    ErrorLogEntry, EventWord, FEAT_ASYNC_EVENTS, FEAT_TEMPERATURE_THRESHOLD,
    LOG_CHANGED_NAMESPACES, LOG_ERRORS, LOG_FIRMWARE, LOG_RETAIN_EVENT, LOG_SMART,
    NOTICE_NAMESPACE, SC_ABORT_REQUESTED, SC_ASYNC_EVENT_LIMIT, SC_INVALID_FIELD,
    SC_INVALID_LOG_PAGE, SC_SQ_DELETED, SmartLog, StatusField,
};

/// Most bytes of a log page that a host may ask for at once.
const LONGEST_LOG_BYTES: u64 = 1 << 20;
/// Event: error status, "invalid doorbell write value", details in the error log page.
const INVALID_DOORBELL: EventWord = EventWord::of(0, 1, LOG_ERRORS);
/// Events that wait for a request.
const MOST_WAITING: usize = 16;
const NS_AN_HOUR: u64 = 3_600_000_000_000;

impl EmuController {
    pub(super) fn request_event(&mut self, command: &Command) -> Option<CommandEnd> {
        if self.events.requests.len() >= usize::from(EVENT_REQUESTS) {
            return Some(CommandEnd::failed(SC_ASYNC_EVENT_LIMIT.do_not_retry()));
        }
        if let Some(event) = self.events.waiting.pop_front() {
            return Some(CommandEnd::value(event.0));
        }
        self.events.requests.push_back(command.cid.get());
        None
    }

    /// Tells the host of an event, or keeps it until the host asks. Events of a log page that the
    /// host has not read since the last are not told.
    fn report(&mut self, event: EventWord) {
        if self.running && self.events.masked.insert(event.log_page()) {
            self.raise(event);
        }
    }

    /// Tells the host of an event, whatever it is.
    pub(super) fn raise(&mut self, event: EventWord) {
        match self.events.requests.pop_front() {
            Some(cid) => self.complete(0, cid, CommandEnd::value(event.0)),
            None if self.events.waiting.len() < MOST_WAITING => {
                self.events.waiting.push_back(event);
            }
            None => {}
        }
    }

    pub(super) fn raise_invalid_doorbell(&mut self) {
        self.report(INVALID_DOORBELL);
    }

    /// The host wants to hear of what these bits of the event configuration say.
    fn wants(&self, bits: u32) -> bool {
        self.features.value(FEAT_ASYNC_EVENTS) & bits != 0
    }

    /// Another temperature; a warning when it is over or under a threshold.
    pub(super) fn set_temperature(&mut self, kelvins: u16) {
        self.health.temperature_k = kelvins;
        self.check_temperature();
    }

    pub(super) fn check_temperature(&mut self) {
        let over = self.features.value(FEAT_TEMPERATURE_THRESHOLD) & 0xffff;
        let now = self.health.temperature_k;
        let bad = u32::from(now) >= over || now <= self.health.under_k;
        let mut warning = self.health.warning;
        warning.set(CriticalWarning::TEMPERATURE, bad);
        self.set_warning(warning);
    }

    /// The threshold below which there is a warning, in kelvins.
    pub(super) fn under_temperature(&mut self) -> &mut u16 {
        &mut self.health.under_k
    }

    /// Sets the critical warnings; new ones are reported to the host.
    pub(super) fn set_warning(&mut self, warning: CriticalWarning) {
        let new = warning - self.health.warning;
        self.health.warning = warning;
        if !self.wants(new.bits().into()) {
            return;
        }
        let about = if new.contains(CriticalWarning::TEMPERATURE) {
            EVENT_SMART_TEMPERATURE
        } else if new.contains(CriticalWarning::SPARE) {
            EVENT_SMART_SPARE
        } else {
            EVENT_SMART_RELIABILITY
        };
        self.report(EventWord::of(EVENT_SMART, about, LOG_SMART));
    }

    /// The host is to look at a namespace again.
    pub(super) fn namespace_changed(&mut self, nsid: u32) {
        self.health.changed.insert(nsid);
        if self.wants(NOTICE_NAMESPACE) {
            let notice = EventWord::of(
                EVENT_NOTICE,
                EVENT_NAMESPACE_CHANGED,
                LOG_CHANGED_NAMESPACES,
            );
            self.report(notice);
        }
    }

    /// Notes the end of a command in the error log, if it is an error of the device's.
    #[cold]
    pub(super) fn note_error(&mut self, sq: u16, command: &Command, status: StatusField) {
        let code = StatusField::of(status.sct(), status.sc());
        if code == SC_ABORT_REQUESTED || code == SC_SQ_DELETED {
            // That is what the host wanted.
            return;
        }
        let health = &mut self.health;
        health.media_errors += u64::from(status.sct() == 2);
        health.error_count += 1;
        let mut entry = ErrorLogEntry::new_zeroed();
        entry.error_count = U64::new(health.error_count);
        entry.sq_id = U16::new(sq);
        entry.cid = command.cid;
        entry.status = U16::new(status.0 << 1);
        entry.parameter_location = U16::new(u16::MAX);
        entry.nsid = command.nsid;
        let lbas = if sq == 0 { None } else { self.lbas_of(command) };
        entry.lba = U64::new(lbas.map_or(0, |lbas| lbas.start));
        let errors = &mut self.health.errors;
        errors.truncate(usize::from(ERROR_LOG_ENTRIES) - 1);
        errors.push_front(entry);
    }

    pub(super) fn get_log_page(&mut self, command: &Command) -> Result<(), StatusField> {
        let [dw10, dw11, dw12, dw13, ..] = command.cdw10_15.map(|dw| dw.get());
        let dwords = u64::from(dw10 >> 16 | dw11 << 16) + 1;
        let offset = u64::from(dw12) | u64::from(dw13) << 32;
        let id = dw10.to_le_bytes()[0];
        let page = match id {
            LOG_ERRORS => self.error_log(),
            LOG_SMART => self.smart_log().as_bytes().to_vec(),
            LOG_FIRMWARE => identify::firmware_log(&self.offer),
            LOG_CHANGED_NAMESPACES => self.changed_namespaces(),
            _ => return Err(SC_INVALID_LOG_PAGE.do_not_retry()),
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = page.get(start..).filter(|_| offset % 4 == 0);
        let (Some(rest), true) = (rest, dwords * 4 <= LONGEST_LOG_BYTES) else {
            return Err(SC_INVALID_FIELD.do_not_retry());
        };
        // Past the page's end there is nothing: zeroes.
        let mut bytes = rest.to_vec();
        bytes.resize(usize::try_from(dwords * 4).unwrap_or(0), 0);
        self.send(command, &bytes)?;
        if dw10 & LOG_RETAIN_EVENT == 0 {
            self.events.masked.remove(&id);
            if id == LOG_CHANGED_NAMESPACES {
                self.health.changed.clear();
            }
        }
        Ok(())
    }

    fn error_log(&self) -> Vec<u8> {
        let mut page: Vec<u8> = Vec::new();
        for entry in &self.health.errors {
            page.extend(entry.as_bytes());
        }
        page.resize(
            usize::from(ERROR_LOG_ENTRIES) * size_of::<ErrorLogEntry>(),
            0,
        );
        page
    }

    fn changed_namespaces(&self) -> Vec<u8> {
        let ids = &self.health.changed;
        let all = [u32::MAX];
        let ids: Vec<u32> = match ids.len() > CHANGED_NAMESPACES {
            true => all.to_vec(),
            false => ids.iter().copied().collect(),
        };
        let mut page: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        page.resize(CHANGED_NAMESPACES * 4, 0);
        page
    }

    /// SMART / health information (section 5.16.1.3).
    fn smart_log(&self) -> SmartLog {
        let (stats, health) = (&self.stats, &self.health);
        let wide = |value: u64| U128::new(value.into());
        let mut log = SmartLog::new_zeroed();
        log.critical_warning = health.warning.bits();
        log.temperature_k = U16::new(health.temperature_k);
        log.available_spare = 100;
        log.spare_threshold = 10;
        // Data units are thousands of 512 bytes, rounded up.
        log.data_units_read = wide(stats.read_bytes.div_ceil(512_000));
        log.data_units_written = wide(stats.written_bytes.div_ceil(512_000));
        log.host_reads = wide(stats.reads);
        log.host_writes = wide(stats.writes);
        log.power_cycles = wide(health.past.power_cycles.saturating_add(1));
        let hours = self.clock.now_ns() / NS_AN_HOUR;
        log.power_on_hours = wide(health.past.power_on_hours.saturating_add(hours));
        log.unsafe_shutdowns = wide(health.past.unsafe_shutdowns);
        log.media_errors = wide(health.media_errors);
        log.error_entries = wide(health.error_count);
        log.sensors_k[0] = U16::new(health.temperature_k);
        log.warning_minutes = U32::new(0);
        log
    }
}
