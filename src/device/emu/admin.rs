//! Admin commands (section 5).

use std::sync::atomic::Ordering;

use super::bits::low16;
use super::controller::{CommandEnd, EmuController};
use super::features::FeatureValues;
use super::identify;
use super::medium::Transfer;
use super::prp;
use super::queue::{Cq, Sq};
use crate::nvme::spec::{
    ADM_ABORT, ADM_ASYNC_EVENT, ADM_CREATE_CQ, ADM_CREATE_SQ, ADM_DELETE_CQ, ADM_DELETE_SQ,
    ADM_DOORBELL_BUFFER_CONFIG, ADM_GET_FEATURES, ADM_GET_LOG_PAGE, ADM_IDENTIFY, ADM_SET_FEATURES,
    CC_IOCQES_SHIFT, CC_IOSQES_SHIFT, CNS_ACTIVE_NAMESPACES, CNS_COMMAND_SET_CONTROLLER,
    CNS_CONTROLLER, CNS_DESCRIPTORS, CNS_NAMESPACE, CSI_NVM, Command, FEAT_NUMBER_OF_QUEUES,
    FEAT_TEMPERATURE_THRESHOLD, FEAT_VOLATILE_WRITE_CACHE, PAGE_BYTES, QUEUE_CONTIGUOUS,
    QUEUE_INTERRUPTS, QUEUE_VECTOR_SHIFT, SC_ABORT_REQUESTED, SC_COMMAND_SEQUENCE,
    SC_DATA_TRANSFER, SC_FEATURE_NOT_SAVEABLE, SC_INVALID_CQ, SC_INVALID_FIELD,
    SC_INVALID_INTERRUPT_VECTOR, SC_INVALID_NAMESPACE, SC_INVALID_OPCODE, SC_INVALID_PRP_OFFSET,
    SC_INVALID_QUEUE_DELETION, SC_INVALID_QUEUE_ID, SC_INVALID_QUEUE_SIZE, SC_SQ_DELETED,
    StatusField,
};
use crate::units::Iova;

/// Keep alive timer: 0, none, and host behaviour support: a page of zeroes, nothing of what a host
/// may ask for. Hosts ask for both, and neither can be set here.
const FEAT_KEEP_ALIVE_TIMER: u32 = 0x0f;
const FEAT_HOST_BEHAVIOUR: u32 = 0x16;
const HOST_BEHAVIOUR_BYTES: usize = 512;
/// Temperature threshold: which sensor (0 for the composite temperature, 15 for all), and over or
/// under.
const THRESHOLD_SENSOR_SHIFT: u32 = 16;
const THRESHOLD_TYPE_SHIFT: u32 = 20;

impl EmuController {
    pub(super) fn execute_admin(&mut self, command: &Command) -> Option<CommandEnd> {
        // Neither fused operations nor SGLs.
        if command.flags != 0 {
            return Some(CommandEnd::failed(SC_INVALID_FIELD.do_not_retry()));
        }
        let done = match command.opcode {
            ADM_DELETE_SQ => self.delete_sq(command).into(),
            ADM_CREATE_SQ => self.create_sq(command).into(),
            ADM_GET_LOG_PAGE => self.get_log_page(command).into(),
            ADM_DELETE_CQ => self.delete_cq(command).into(),
            ADM_CREATE_CQ => self.create_cq(command).into(),
            ADM_IDENTIFY => self.identify(command).into(),
            ADM_ABORT => self.abort(command),
            ADM_SET_FEATURES => self
                .set_features(command)
                .unwrap_or_else(CommandEnd::failed),
            ADM_GET_FEATURES => self
                .get_features(command)
                .unwrap_or_else(CommandEnd::failed),
            ADM_ASYNC_EVENT => return self.request_event(command),
            ADM_DOORBELL_BUFFER_CONFIG if self.offer.shadow_doorbells => {
                self.take_shadows(command).into()
            }
            _ => CommandEnd::failed(SC_INVALID_OPCODE.do_not_retry()),
        };
        Some(done)
    }

    /// Delivers `bytes` to the command's host memory.
    pub(super) fn send(&mut self, command: &Command, bytes: &[u8]) -> Result<(), StatusField> {
        let (prp1, prp2) = (command.prp1.get(), command.prp2.get());
        let len = bytes.len() as u64;
        let sent = prp::walk(&self.space, prp1, prp2, len, &mut self.segments).and_then(|()| {
            Transfer {
                space: &self.space,
                segments: &self.segments,
            }
            .scatter(bytes)
        });
        self.stats.dma_faults += u64::from(sent == Err(SC_DATA_TRANSFER));
        sent
    }

    fn identify(&mut self, command: &Command) -> Result<(), StatusField> {
        let nsid = command.nsid.get();
        let mut page = match command.cdw10_15[0].get() & 0xff {
            CNS_NAMESPACE => {
                let at = self.namespace(nsid)?;
                identify::namespace(&self.offer, &self.namespaces[at], nsid)
            }
            CNS_CONTROLLER => identify::controller(&self.offer, self.namespaces.len()),
            CNS_ACTIVE_NAMESPACES if nsid >= 0xffff_fffe => {
                return Err(SC_INVALID_NAMESPACE.do_not_retry());
            }
            CNS_ACTIVE_NAMESPACES => identify::active_namespaces(self.namespaces.len(), nsid),
            CNS_DESCRIPTORS => {
                self.namespace(nsid)?;
                identify::descriptors(&self.offer, nsid)
            }
            CNS_COMMAND_SET_CONTROLLER if command.cdw10_15[1].get() >> 24 == u32::from(CSI_NVM) => {
                identify::nvm_controller(&self.offer)
            }
            _ => return Err(SC_INVALID_FIELD.do_not_retry()),
        };
        if self.garbage {
            identify::spoil(&mut page, &mut self.faults.rng);
        }
        self.send(command, &page)
    }

    /// The index of the namespace `nsid`.
    pub(super) fn namespace(&self, nsid: u32) -> Result<usize, StatusField> {
        (nsid as usize)
            .checked_sub(1)
            .filter(|&at| at < self.namespaces.len())
            .ok_or(SC_INVALID_NAMESPACE.do_not_retry())
    }

    /// The checks that both kinds of queue share: id, size, base. Returns the id and the number of
    /// entries.
    fn check_queue(
        &self,
        command: &Command,
        exists: impl Fn(&Self, usize) -> bool,
        entry_shift_ok: bool,
    ) -> Result<(u16, u32), StatusField> {
        let dw10 = command.cdw10_15[0].get();
        let id = low16(dw10);
        let size = (dw10 >> 16) + 1;
        if id == 0 || id > self.features.queues || exists(self, id.into()) {
            return Err(SC_INVALID_QUEUE_ID.do_not_retry());
        }
        if size < 2 || size > self.offer.max_queue_entries || !entry_shift_ok {
            return Err(SC_INVALID_QUEUE_SIZE.do_not_retry());
        }
        if command.cdw10_15[1].get() & QUEUE_CONTIGUOUS == 0 {
            return Err(SC_INVALID_FIELD.do_not_retry());
        }
        if !command.prp1.get().is_multiple_of(PAGE_BYTES as u64) {
            return Err(SC_INVALID_PRP_OFFSET.do_not_retry());
        }
        Ok((id, size))
    }

    fn entry_shift_is(&self, shift: u32, value: u32) -> bool {
        self.registers.cc.load(Ordering::Relaxed) >> shift & 0xf == value
    }

    fn create_cq(&mut self, command: &Command) -> Result<(), StatusField> {
        let (id, size) = self.check_queue(
            command,
            |this, id| this.cqs[id].is_some(),
            self.entry_shift_is(CC_IOCQES_SHIFT, 4),
        )?;
        let dw11 = command.cdw10_15[1].get();
        let vector = (dw11 & QUEUE_INTERRUPTS != 0).then(|| low16(dw11 >> QUEUE_VECTOR_SHIFT));
        if vector.is_some_and(|vector| vector >= self.vectors.count()) {
            return Err(SC_INVALID_INTERRUPT_VECTOR.do_not_retry());
        }
        let cq = Cq::new(size, Iova(command.prp1.get()), &self.space);
        let mut cq = self.reachable(cq)?;
        cq.vector = vector;
        self.clear_doorbell(id, true);
        self.cqs[usize::from(id)] = Some(cq);
        Ok(())
    }

    fn create_sq(&mut self, command: &Command) -> Result<(), StatusField> {
        let (id, size) = self.check_queue(
            command,
            |this, id| this.sqs[id].is_some(),
            self.entry_shift_is(CC_IOSQES_SHIFT, 6),
        )?;
        let cq_id = low16(command.cdw10_15[1].get() >> 16);
        // 0 is the admin queue's; from the first that cannot be created on none is valid (section
        // 5.4).
        if cq_id == 0 || cq_id > self.features.queues {
            return Err(SC_INVALID_QUEUE_ID.do_not_retry());
        }
        let found = matches!(self.cqs.get(usize::from(cq_id)), Some(Some(_)));
        if !found {
            return Err(SC_INVALID_CQ.do_not_retry());
        }
        let sq = Sq::new(cq_id, size, Iova(command.prp1.get()), &self.space);
        let sq = self.reachable(sq)?;
        self.clear_doorbell(id, false);
        self.sqs[usize::from(id)] = Some(sq);
        if let Some(cq) = &mut self.cqs[usize::from(cq_id)] {
            cq.sqs += 1;
        }
        self.active.push(id);
        Ok(())
    }

    fn reachable<T, E>(&mut self, queue: Result<T, E>) -> Result<T, StatusField> {
        queue.map_err(|_| {
            self.stats.dma_faults += 1;
            SC_DATA_TRANSFER
        })
    }

    fn delete_sq(&mut self, command: &Command) -> Result<(), StatusField> {
        let id = low16(command.cdw10_15[0].get());
        let exists = matches!(self.sqs.get(usize::from(id)), Some(Some(_)));
        if id == 0 || !exists {
            return Err(SC_INVALID_QUEUE_ID.do_not_retry());
        }
        while let Some(at) = self.held.iter().position(|held| held.sq == id) {
            let held = self.held.remove(at);
            self.end(held, Some(SC_SQ_DELETED));
        }
        let Some(sq) = self.sqs[usize::from(id)].take() else {
            return Ok(());
        };
        if let Some(Some(cq)) = self.cqs.get_mut(usize::from(sq.cq)) {
            cq.sqs -= 1;
        }
        self.active.retain(|&active| active != id);
        Ok(())
    }

    fn delete_cq(&mut self, command: &Command) -> Result<(), StatusField> {
        let id = low16(command.cdw10_15[0].get());
        match self.cqs.get_mut(usize::from(id)) {
            Some(slot @ Some(_)) if id != 0 => {
                if slot.as_ref().is_some_and(|cq| cq.sqs > 0) {
                    return Err(SC_INVALID_QUEUE_DELETION.do_not_retry());
                }
                *slot = None;
                Ok(())
            }
            _ => Err(SC_INVALID_QUEUE_ID.do_not_retry()),
        }
    }

    /// Aborts a command that is held back or an event request. Whatever else it names has ended, or
    /// ends at once: not aborted (bit 0).
    fn abort(&mut self, command: &Command) -> CommandEnd {
        let dw10 = command.cdw10_15[0].get();
        let (sq, cid) = (low16(dw10), low16(dw10 >> 16));
        let found = self
            .held
            .iter()
            .position(|held| held.sq == sq && held.command.cid.get() == cid);
        if let Some(at) = found {
            let held = self.held.remove(at);
            self.end(held, Some(SC_ABORT_REQUESTED));
        } else if sq == 0 && self.events.requests.contains(&cid) {
            self.events.requests.retain(|&request| request != cid);
            self.complete(0, cid, CommandEnd::failed(SC_ABORT_REQUESTED));
        } else {
            self.stats.aborts_refused += 1;
            return CommandEnd::value(1);
        }
        self.stats.aborts += 1;
        CommandEnd::SUCCESS
    }

    fn set_features(&mut self, command: &Command) -> Result<CommandEnd, StatusField> {
        let dw10 = command.cdw10_15[0].get();
        let value = command.cdw10_15[1].get();
        if dw10 >> 31 == 1 {
            return Err(SC_FEATURE_NOT_SAVEABLE.do_not_retry());
        }
        let id = dw10 & 0xff;
        let at = FeatureValues::index(id).ok_or(SC_INVALID_FIELD.do_not_retry())?;
        match id {
            FEAT_NUMBER_OF_QUEUES => return self.set_queues(value),
            FEAT_VOLATILE_WRITE_CACHE => {
                if !self.offer.volatile_write_cache {
                    return Err(SC_INVALID_FIELD.do_not_retry());
                }
                if value & 1 == 0 {
                    for namespace in &mut self.namespaces {
                        namespace.flush()?;
                    }
                }
                self.features.current[at] = value & 1;
            }
            FEAT_TEMPERATURE_THRESHOLD => {
                let kelvins = low16(value);
                match threshold_type(value)? {
                    Threshold::Over => self.features.current[at] = kelvins.into(),
                    Threshold::Under => *self.under_temperature() = kelvins,
                }
                self.check_temperature();
            }
            _ => self.features.current[at] = value,
        }
        Ok(CommandEnd::SUCCESS)
    }

    fn set_queues(&mut self, value: u32) -> Result<CommandEnd, StatusField> {
        if self.sqs.iter().skip(1).any(Option::is_some)
            || self.cqs.iter().skip(1).any(Option::is_some)
        {
            return Err(SC_COMMAND_SEQUENCE.do_not_retry());
        }
        let (sqs, cqs) = (value & 0xffff, value >> 16);
        if sqs == 0xffff || cqs == 0xffff {
            return Err(SC_INVALID_FIELD.do_not_retry());
        }
        let most = u32::from(self.offer.max_io_queues) - 1;
        let granted = sqs.max(cqs).min(most);
        self.features.queues = low16(granted) + 1;
        let value = sqs.min(most) | cqs.min(most) << 16;
        self.features.current[FEAT_NUMBER_OF_QUEUES as usize] = value;
        Ok(CommandEnd::value(value))
    }

    fn get_features(&mut self, command: &Command) -> Result<CommandEnd, StatusField> {
        let dw10 = command.cdw10_15[0].get();
        let id = dw10 & 0xff;
        let select = dw10 >> 8 & 7;
        if matches!(id, FEAT_KEEP_ALIVE_TIMER | FEAT_HOST_BEHAVIOUR) && select <= 3 {
            if id == FEAT_HOST_BEHAVIOUR && select < 3 {
                self.send(command, &[0; HOST_BEHAVIOUR_BYTES])?;
            }
            return Ok(CommandEnd::value(0));
        }
        let at = FeatureValues::index(id).ok_or(SC_INVALID_FIELD.do_not_retry())?;
        if id == FEAT_VOLATILE_WRITE_CACHE && !self.offer.volatile_write_cache {
            return Err(SC_INVALID_FIELD.do_not_retry());
        }
        let under = id == FEAT_TEMPERATURE_THRESHOLD
            && threshold_type(command.cdw10_15[1].get())? == Threshold::Under;
        match select {
            0 if under => Ok(CommandEnd::value(u32::from(*self.under_temperature()))),
            1 | 2 if under => Ok(CommandEnd::value(0)),
            0 => Ok(CommandEnd::value(self.features.current[at])),
            1 | 2 => Ok(CommandEnd::value(self.features.default[at])),
            // Supported capabilities: changeable, neither saveable nor per namespace.
            3 => Ok(CommandEnd::value(4)),
            _ => Err(SC_INVALID_FIELD.do_not_retry()),
        }
    }
}

/// Whether a temperature threshold is for too much or for too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threshold {
    Over,
    Under,
}

/// The kind of threshold that CDW11 names. The composite temperature is the one there is.
fn threshold_type(dw11: u32) -> Result<Threshold, StatusField> {
    match (
        dw11 >> THRESHOLD_SENSOR_SHIFT & 0xf,
        dw11 >> THRESHOLD_TYPE_SHIFT & 3,
    ) {
        (0 | 0xf, 0) => Ok(Threshold::Over),
        (0 | 0xf, 1) => Ok(Threshold::Under),
        _ => Err(SC_INVALID_FIELD.do_not_retry()),
    }
}
