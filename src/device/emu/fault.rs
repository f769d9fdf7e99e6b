//! Faults as data: what goes wrong, to which command, how often.
//!
//! A [`FaultPlan`] has rates (seeded chance for each command) and rules (the nth command that
//! matches). The same plan over the same commands gives the same faults.

use std::ops::Range;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::nvme::spec::{
    ADM_ABORT, ADM_ASYNC_EVENT, ADM_IDENTIFY, OPC_WRITE, SC_INTERNAL, SC_UNRECOVERED_READ,
    SC_WRITE_FAULT, StatusField,
};

/// One way to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The command ends with this status and does nothing.
    Status(StatusField),
    /// The command does nothing and does not end before it is aborted or the controller is reset.
    Lost,
    /// The command is done, but does not end before it is aborted or the controller is reset.
    LostCompletion,
    /// The command ends this much later. Whether it is done at once or when it ends is left to the
    /// seed.
    Late {
        /// How much later, in nanoseconds of the device's clock.
        delay_ns: u64,
    },
    /// The command ends only after this many later completions of its queue (or after a
    /// millisecond, so that it ends at all).
    Reorder {
        /// How many completions overtake it.
        completions: u32,
    },
    /// Any part of a write's blocks is written, then it ends with a write fault. Writes only.
    Torn,
    /// The completion is posted twice.
    Duplicate,
    /// The completion has a command id that is not the command's; the command itself never ends.
    WrongCid,
    /// The completion has the id of the command that completed before; the command itself never
    /// ends.
    StaleCid,
    /// The queue's next event index (with shadow doorbells) is a random number, and the queue
    /// sleeps.
    GarbageEventIndex,
    /// The completion is posted without an interrupt.
    LostInterrupt,
    /// The completion's phase bit is wrong; the entry is skipped, and so never seen.
    WrongPhase,
    /// The completion's submission queue head is a random number.
    GarbageSqHead,
    /// Identify delivers random bytes, or the right ones with some replaced. Identify commands
    /// only.
    GarbageIdentify,
    /// An abort says that it did not abort, and does not. Abort commands only.
    AbortFails,
    /// The controller stops with CSTS.CFS when it meets the command.
    Fatal,
    /// The device disappears when it meets the command: all registers read as ones.
    Gone,
    /// The controller does not become ready when it is enabled.
    NeverReady,
    /// The controller stays ready when it is disabled.
    ResetFails,
    /// [`crate::device::Device::stop_dma`] fails.
    StopFails,
}

impl Fault {
    /// Its name in [`super::EmuStats::faults`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Lost => "lost",
            Self::LostCompletion => "lost-completion",
            Self::Late { .. } => "late",
            Self::Reorder { .. } => "reorder",
            Self::Torn => "torn",
            Self::Duplicate => "duplicate",
            Self::WrongCid => "wrong-cid",
            Self::StaleCid => "stale-cid",
            Self::GarbageEventIndex => "garbage-event-index",
            Self::LostInterrupt => "lost-interrupt",
            Self::WrongPhase => "wrong-phase",
            Self::GarbageSqHead => "garbage-sq-head",
            Self::GarbageIdentify => "garbage-identify",
            Self::AbortFails => "abort-fails",
            Self::Fatal => "fatal",
            Self::Gone => "gone",
            Self::NeverReady => "never-ready",
            Self::ResetFails => "reset-fails",
            Self::StopFails => "stop-fails",
        }
    }

    /// Whether the fault can befall `target` at all.
    fn fits(self, target: &FaultTarget) -> bool {
        match self {
            Self::NeverReady => target.event == FaultEvent::Enable,
            Self::ResetFails => target.event == FaultEvent::Disable,
            Self::StopFails => target.event == FaultEvent::StopDma,
            _ if target.event != FaultEvent::Command => false,
            Self::Torn => !target.admin && target.opcode == OPC_WRITE,
            Self::GarbageIdentify => target.admin && target.opcode == ADM_IDENTIFY,
            Self::AbortFails => target.admin && target.opcode == ADM_ABORT,
            // An asynchronous event request waits by its nature.
            _ => !(target.admin && target.opcode == ADM_ASYNC_EVENT),
        }
    }
}

/// Which commands a rule or a rate means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// All commands.
    #[default]
    Any,
    /// Commands of the admin queue.
    Admin,
    /// Commands of the I/O queues.
    Io,
}

/// A fault for chosen commands: of those that match, `after` go unharmed, then `times` are hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRule {
    /// What happens.
    pub fault: Fault,
    /// On which queues.
    pub scope: Scope,
    /// To commands of this opcode only.
    pub opcode: Option<u8>,
    /// To commands that touch these blocks only.
    pub lbas: Option<Range<u64>>,
    /// How many matching commands are spared first.
    pub after: u64,
    /// How many are hit then; `u64::MAX` for all.
    pub times: u64,
}

impl FaultRule {
    /// `fault` for the next command that it can befall, once.
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            scope: Scope::Any,
            opcode: None,
            lbas: None,
            after: 0,
            times: 1,
        }
    }

    /// Only on the queues of `scope`.
    #[must_use]
    pub fn on(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Only for commands of this opcode.
    #[must_use]
    pub fn opcode(mut self, opcode: u8) -> Self {
        self.opcode = Some(opcode);
        self
    }

    /// Only for commands that touch these blocks.
    #[must_use]
    pub fn lbas(mut self, lbas: Range<u64>) -> Self {
        self.lbas = Some(lbas);
        self
    }

    /// Spares the first `after` commands that match.
    #[must_use]
    pub fn after(mut self, after: u64) -> Self {
        self.after = after;
        self
    }

    /// Hits `times` commands.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }
}

/// A chance for every command that the fault can befall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultRate {
    /// What happens.
    pub fault: Fault,
    /// On which queues.
    pub scope: Scope,
    /// How often: commands in a million.
    pub per_million: u32,
}

/// What goes wrong in an embedded controller. The default: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Seeds every chance, those of the cache model included.
    pub seed: u64,
    /// Chances.
    pub rates: Vec<FaultRate>,
    /// Rules; the first that matches a command is taken, before any rate.
    pub rules: Vec<FaultRule>,
}

impl FaultPlan {
    /// No faults, and this seed for the cache model.
    pub fn none(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Adds a chance.
    #[must_use]
    pub fn rate(mut self, scope: Scope, fault: Fault, per_million: u32) -> Self {
        self.rates.push(FaultRate {
            fault,
            scope,
            per_million,
        });
        self
    }

    /// Adds a rule.
    #[must_use]
    pub fn rule(mut self, rule: FaultRule) -> Self {
        self.rules.push(rule);
        self
    }

    /// A poor but honest controller: everything that a driver must survive without losing an
    /// operation or mixing up data, on the I/O queues, in seeded measure. `per_million` is the rate
    /// of each kind.
    pub fn flaky(seed: u64, per_million: u32) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let late = Fault::Late {
            delay_ns: rng.random_range(10_000..1_000_000),
        };
        let reorder = Fault::Reorder {
            completions: rng.random_range(1..8),
        };
        let mut plan = Self::none(seed);
        for fault in [
            Fault::Status(SC_INTERNAL),
            Fault::Status(SC_UNRECOVERED_READ),
            Fault::Status(SC_WRITE_FAULT.do_not_retry()),
            Fault::Lost,
            Fault::LostCompletion,
            late,
            reorder,
            Fault::Torn,
            Fault::AbortFails,
        ] {
            let scope = match fault {
                Fault::AbortFails => Scope::Admin,
                _ => Scope::Io,
            };
            plan = plan.rate(scope, fault, per_million);
        }
        plan
    }

    /// A hostile controller: a seeded choice of wrong ids, wrong phases, garbage, losses and sudden
    /// deaths, on all queues.
    pub fn hostile(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let late = Fault::Late {
            delay_ns: rng.random_range(1_000..10_000_000),
        };
        let mut plan = Self::none(seed);
        for fault in [
            Fault::Status(StatusField(rng.random::<u16>() & 0x7fff | 1)),
            Fault::Lost,
            Fault::LostCompletion,
            late,
            Fault::Reorder { completions: 3 },
            Fault::Torn,
            Fault::Duplicate,
            Fault::WrongCid,
            Fault::StaleCid,
            Fault::WrongPhase,
            Fault::GarbageSqHead,
            Fault::AbortFails,
        ] {
            if rng.random_bool(0.5) {
                plan = plan.rate(Scope::Any, fault, rng.random_range(1_000..100_000));
            }
        }
        if rng.random_bool(0.3) {
            plan = plan.rate(Scope::Any, Fault::GarbageIdentify, 500_000);
        }
        for fault in [Fault::NeverReady, Fault::ResetFails] {
            plan = plan.rate(Scope::Any, fault, rng.random_range(0..200_000));
        }
        for fault in [Fault::Fatal, Fault::Gone] {
            plan = plan.rate(Scope::Any, fault, rng.random_range(0..5_000));
        }
        plan
    }
}

/// What a fault may befall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultEvent {
    Command,
    Enable,
    Disable,
    StopDma,
}

/// The command or event that faults are picked for.
#[derive(Debug, Clone)]
pub(super) struct FaultTarget {
    pub(super) event: FaultEvent,
    pub(super) admin: bool,
    pub(super) opcode: u8,
    /// The blocks that the command touches, if it touches any.
    pub(super) lbas: Option<Range<u64>>,
}

impl FaultTarget {
    pub(super) fn of(event: FaultEvent) -> Self {
        Self {
            event,
            admin: true,
            opcode: 0,
            lbas: None,
        }
    }

    fn in_scope(&self, scope: Scope) -> bool {
        match scope {
            Scope::Any => true,
            Scope::Admin => self.admin,
            Scope::Io => !self.admin,
        }
    }

    fn matches(&self, rule: &FaultRule) -> bool {
        let overlaps = |lbas: &Range<u64>| {
            self.lbas
                .as_ref()
                .is_some_and(|own| own.start < lbas.end && lbas.start < own.end)
        };
        rule.fault.fits(self)
            && self.in_scope(rule.scope)
            && (self.event != FaultEvent::Command || rule.opcode.is_none_or(|o| o == self.opcode))
            && rule.lbas.as_ref().is_none_or(overlaps)
    }
}

/// A plan at work.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Vec<FaultRule>,
    rates: Vec<FaultRate>,
    pub(super) rng: SmallRng,
}

impl Faults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        Self {
            rules: plan.rules,
            rates: plan.rates,
            rng: SmallRng::seed_from_u64(plan.seed),
        }
    }

    pub(super) fn add(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    /// Nothing can go wrong (any more).
    #[inline]
    pub(super) fn idle(&self) -> bool {
        self.rules.is_empty() && self.rates.is_empty()
    }

    /// The fault for `target`, if any. Uses up rules.
    pub(super) fn pick(&mut self, target: &FaultTarget) -> Option<Fault> {
        let mut hit = None;
        self.rules.retain_mut(|rule| {
            if hit.is_some() || !target.matches(rule) {
                return rule.times > 0;
            }
            if rule.after > 0 {
                rule.after -= 1;
            } else if rule.times > 0 {
                hit = Some(rule.fault);
                if rule.times != u64::MAX {
                    rule.times -= 1;
                }
            }
            rule.times > 0
        });
        if hit.is_some() {
            return hit;
        }
        for rate in &self.rates {
            if rate.fault.fits(target)
                && target.in_scope(rate.scope)
                && self
                    .rng
                    .random_ratio(rate.per_million.min(1_000_000), 1_000_000)
            {
                return Some(rate.fault);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::OPC_READ;

    fn command(admin: bool, opcode: u8, lbas: Option<Range<u64>>) -> FaultTarget {
        FaultTarget {
            event: FaultEvent::Command,
            admin,
            opcode,
            lbas,
        }
    }

    #[test]
    fn a_rule_hits_the_nth_match_and_is_used_up() {
        let rule = FaultRule::new(Fault::Lost)
            .on(Scope::Io)
            .opcode(OPC_READ)
            .lbas(10..20)
            .after(1)
            .times(2);
        let mut faults = Faults::new(FaultPlan::default().rule(rule));
        assert_eq!(faults.pick(&command(false, OPC_READ, Some(0..10))), None);
        assert_eq!(faults.pick(&command(true, OPC_READ, Some(10..11))), None);
        assert_eq!(faults.pick(&command(false, OPC_WRITE, Some(10..11))), None);
        let hit = command(false, OPC_READ, Some(19..21));
        let picks: Vec<_> = (0..4).map(|_| faults.pick(&hit)).collect();
        assert_eq!(picks, [None, Some(Fault::Lost), Some(Fault::Lost), None]);
        assert!(faults.idle());
    }

    #[test]
    fn rates_are_seeded_and_befall_only_what_they_can() {
        let plan = FaultPlan::none(7).rate(Scope::Any, Fault::Torn, 500_000);
        let run = |plan: FaultPlan| {
            let mut faults = Faults::new(plan);
            (0..64)
                .map(|_| faults.pick(&command(false, OPC_WRITE, None)).is_some())
                .collect::<Vec<_>>()
        };
        let hits = run(plan.clone());
        assert_eq!(hits, run(plan.clone()));
        assert!(hits.contains(&true) && hits.contains(&false));
        let mut faults = Faults::new(plan);
        assert!((0..64).all(|_| faults.pick(&command(false, OPC_READ, None)).is_none()));
        assert!((0..64).all(|_| faults.pick(&FaultTarget::of(FaultEvent::Enable)).is_none()));
    }
}
