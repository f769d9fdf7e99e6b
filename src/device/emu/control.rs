//! What register writes do: enable, reset, shut down (sections 3.1.3, 3.5, 3.6, 3.7).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::Rng;
use rand::rngs::SmallRng;

use super::controller::EmuController;
use super::fault::{FaultEvent, FaultTarget};
use super::medium::Medium;
use super::queue::{Cq, Sq};
use super::registers::{CSTS_NSSRO, EmuRegisters, NSSR_MAGIC};
use crate::nvme::spec::{
    CC_CSS_SHIFT, CC_EN, CC_MPS_SHIFT, CC_SHN_MASK, CSTS_RDY, CSTS_SHST_COMPLETE, CSTS_SHST_MASK,
    REG_ACQ, REG_AQA, REG_ASQ, REG_CC, REG_CSTS, REG_DOORBELLS, REG_INTMC, REG_INTMS, REG_NSSR,
    StatusField,
};
use crate::units::Iova;

/// CC: arbitration mechanism.
const CC_AMS_SHIFT: u32 = 11;
/// CC: the fields that are fixed while the controller is enabled: CSS, MPS, AMS.
const CC_FIXED: u32 = 7 << CC_CSS_SHIFT | 0xf << CC_MPS_SHIFT | 7 << CC_AMS_SHIFT;

impl EmuController {
    pub(super) fn write32(&mut self, offset: u32, value: u32) {
        let registers = Arc::clone(&self.registers);
        if registers.gone.load(Ordering::Acquire) {
            return;
        }
        // The admin queue's registers belong to the controller while it is enabled.
        let enabled = registers.cc.load(Ordering::Relaxed) & CC_EN != 0;
        let mask = &registers.interrupt_mask;
        match offset {
            REG_INTMS => {
                mask.fetch_or(value, Ordering::Relaxed);
            }
            REG_INTMC => {
                mask.fetch_and(!value, Ordering::Relaxed);
            }
            REG_CC => self.write_cc(value),
            REG_CSTS => registers.set_csts(registers.csts() & !(value & CSTS_NSSRO)),
            REG_NSSR if value == NSSR_MAGIC => {
                self.reset();
                registers.cc.store(0, Ordering::Relaxed);
                registers.set_csts(CSTS_NSSRO);
            }
            REG_AQA if !enabled => registers.aqa.store(value & 0x0fff_0fff, Ordering::Relaxed),
            REG_ASQ | 0x2c if !enabled => {
                EmuRegisters::write_half(&registers.asq, offset != REG_ASQ, value);
            }
            REG_ACQ | 0x34 if !enabled => {
                EmuRegisters::write_half(&registers.acq, offset != REG_ACQ, value);
            }
            REG_DOORBELLS.. => {
                let index = usize::try_from((offset - REG_DOORBELLS) / 4).unwrap_or(usize::MAX);
                if let Some(word) = self.doorbells.get(index)
                    && offset.is_multiple_of(4)
                {
                    word.store(value.to_le(), Ordering::Release);
                }
            }
            // Read-only and reserved registers ignore writes.
            _ => {}
        }
    }

    fn write_cc(&mut self, value: u32) {
        let old = self.registers.cc.load(Ordering::Relaxed);
        let stays_enabled = old & value & CC_EN != 0;
        let new = if stays_enabled {
            value & !CC_FIXED | old & CC_FIXED
        } else {
            value
        };
        self.registers.cc.store(new, Ordering::Relaxed);
        match (old & CC_EN != 0, new & CC_EN != 0) {
            (false, true) => self.enable(new),
            (true, false) => self.disable(),
            _ => {}
        }
        if new & CC_SHN_MASK != 0 && self.registers.csts() & CSTS_SHST_MASK != CSTS_SHST_COMPLETE {
            self.shut_down();
        }
    }

    fn enable(&mut self, cc: u32) {
        self.reset();
        if let Some(fault) = self.faults.pick(&FaultTarget::of(FaultEvent::Enable)) {
            self.count_fault(fault);
            return;
        }
        let aqa = self.registers.aqa.load(Ordering::Relaxed);
        let (sq_size, cq_size) = ((aqa & 0xfff) + 1, (aqa >> 16 & 0xfff) + 1);
        // Pages of 4 KiB, the NVM command set and round robin are all there is; a queue has two
        // entries.
        if cc & CC_FIXED != 0 || sq_size < 2 || cq_size < 2 {
            return self.fail();
        }
        let asq = Iova(self.registers.asq.load(Ordering::Relaxed));
        let acq = Iova(self.registers.acq.load(Ordering::Relaxed));
        let (Ok(sq), Ok(mut cq)) = (
            Sq::new(0, sq_size, asq, &self.space),
            Cq::new(cq_size, acq, &self.space),
        ) else {
            self.stats.dma_faults += 1;
            return self.fail();
        };
        cq.sqs = 1;
        cq.vector = (self.vectors.count() > 0).then_some(0);
        self.sqs[0] = Some(sq);
        self.cqs[0] = Some(cq);
        self.active.push(0);
        if self.offer.ready_delay_ns == 0 {
            self.become_ready();
        } else {
            let now = self.clock.now_ns();
            self.ready_at = Some(now.saturating_add(self.offer.ready_delay_ns));
        }
    }

    pub(super) fn become_ready(&mut self) {
        self.ready_at = None;
        self.running = true;
        self.registers.set_csts(self.registers.csts() | CSTS_RDY);
    }

    fn disable(&mut self) {
        if let Some(fault) = self.faults.pick(&FaultTarget::of(FaultEvent::Disable)) {
            self.count_fault(fault);
            self.running = false;
            return;
        }
        self.stats.resets += 1;
        self.reset();
    }

    /// A controller reset: queues, outstanding commands and features are gone. Cached data is not.
    fn reset(&mut self) {
        self.running = false;
        self.ready_at = None;
        self.drop_queues();
        self.features = super::features::FeatureValues::new(
            self.offer.max_io_queues,
            self.offer.volatile_write_cache,
        );
        *self.under_temperature() = 0;
        let subsystem = self.registers.csts() & CSTS_NSSRO;
        self.registers.set_csts(subsystem);
    }

    fn shut_down(&mut self) {
        self.running = false;
        for namespace in &mut self.namespaces {
            if namespace.flush().is_err() {
                // Not complete, then: the host gives up waiting and knows why.
                return self.fail();
            }
        }
        let csts = self.registers.csts() & !CSTS_SHST_MASK;
        self.registers.set_csts(csts | CSTS_SHST_COMPLETE);
    }

    /// A function-level reset: all registers are as after power-on. `false` when a fault prevents
    /// it.
    pub(super) fn stop_dma(&mut self) -> bool {
        if let Some(fault) = self.faults.pick(&FaultTarget::of(FaultEvent::StopDma)) {
            self.count_fault(fault);
            return false;
        }
        self.power_on_reset();
        true
    }

    /// The host has left, and nothing of it is to reach the next one.
    pub(super) fn forget_host(&mut self) {
        self.power_on_reset();
        self.vectors.disconnect_all();
        self.due.clear();
    }

    fn power_on_reset(&mut self) {
        self.stats.resets += 1;
        self.reset();
        let registers = &self.registers;
        registers.set_csts(0);
        registers.cc.store(0, Ordering::Relaxed);
        registers.aqa.store(0, Ordering::Relaxed);
        registers.asq.store(0, Ordering::Relaxed);
        registers.acq.store(0, Ordering::Relaxed);
        registers.interrupt_mask.store(0, Ordering::Relaxed);
    }

    /// Simulates a power cut. Commands in progress are done or not; cached blocks are kept or lost,
    /// each at random. `None` when the medium was taken before.
    pub(super) fn power_cut(&mut self, rng: &mut SmallRng) -> Option<Result<Medium, StatusField>> {
        let shut_down = self.registers.csts() & CSTS_SHST_MASK == CSTS_SHST_COMPLETE;
        self.stats.unsafe_shutdowns += u64::from(!shut_down && !self.namespaces.is_empty());
        if self.running {
            self.half_do_what_is_under_way(rng);
        }
        self.disappear();
        Some(self.namespaces.pop()?.power_cut(rng))
    }

    /// Of the writes that the host submitted and that have not ended, some are done, some in part.
    fn half_do_what_is_under_way(&mut self, rng: &mut SmallRng) {
        let mut commands: Vec<_> = self
            .held
            .drain(..)
            .filter(|held| held.sq != 0 && !held.is_done())
            .map(|held| held.command)
            .collect();
        for sq in self.sqs.iter_mut().skip(1).flatten() {
            while !sq.is_empty() {
                let Some(command) = sq.fetch() else { break };
                commands.push(command);
            }
        }
        for command in commands {
            match rng.random_range(0..3) {
                0 => {}
                1 => drop(self.write_torn(&command)),
                _ => {
                    self.execute_io(&command);
                }
            }
        }
    }

    /// An orderly end: everything is flushed. `None` when the medium was taken before.
    pub(super) fn power_off(&mut self) -> Option<Result<Medium, StatusField>> {
        self.disappear();
        let mut namespace = self.namespaces.pop()?;
        Some(namespace.flush().map(|()| namespace.medium))
    }
}
