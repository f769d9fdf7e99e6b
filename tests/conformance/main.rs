//! One list of tests, for every device: the driver's, and those of files beside the kernel's xfs.
//!
//! Each test is made once for each stand that it is for, and is called `STAND::MODULE::TEST`:
//! `pci:0000:00:04.0::files::paths_lead_where_the_kernel_leads`. The usual options of a test
//! program choose among them. `XTENT_CONFORMANCE` names the stands, with commas between: `embedded`
//! (the embedded controller in many shapes), `vfio-user` (the same behind a socket; these two are
//! meant when nothing is said), `vfio-user:SOCKET` (a controller that another process serves,
//! SPDK's say; only for the driver's tests, and **all that is on its disk is lost**) and
//! `pci:ADDRESS` (a controller over VFIO; **all that is on its disk is lost**, and it must be one
//! that vfio-setup.sh gives away). `spdk-tcp` and `spdk-vfio-user` (with the feature `spdk`) are
//! SPDK's driver on a disk of SPDK's own target. Stands are independent: with `--test-threads=2`
//! two of them work at once.
//!
//! `XTENT_SCALE=small` does less of everything, for a machine that is emulated. `XTENT_SEED`
//! changes random choices, and `XTENT_RUNS` the number of overwrites.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod buffered;
#[path = "../common/mod.rs"]
mod common;
mod driver;
mod files;
mod overwrite;
mod read_equality;
#[path = "../rig/mod.rs"]
mod rig;
#[cfg(feature = "spdk")]
mod spdk;
mod stand;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Trial};
use stand::{For, Stand};

/// Done, or why it was not.
pub(crate) type Outcome = Result<(), Reason>;

/// Why a test was not done.
#[derive(Debug)]
pub(crate) enum Reason {
    /// Something that it needs is not here.
    Missing(String),
    /// There is no such test on this stand.
    NotFor(String),
}

/// A test of the list.
pub(crate) struct Test {
    name: String,
    is_for: For,
    run: Arc<dyn Fn(&Stand) -> Outcome + Send + Sync>,
    dealt: bool,
}

impl Test {
    /// A test for every stand that is for this.
    pub(crate) fn each(
        name: &str,
        is_for: For,
        run: impl Fn(&Stand) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            is_for,
            run: Arc::new(run),
            dealt: false,
        }
    }

    /// One stand of each kind and block size is enough: they take turns.
    pub(crate) fn dealt(mut self) -> Self {
        self.dealt = true;
        self
    }

    fn fits(&self, stand: &Stand) -> bool {
        stand.is_for == For::Both || stand.is_for == self.is_for
    }

    fn on(&self, stand: &Arc<Stand>) -> Trial {
        let (stand, run) = (Arc::clone(stand), Arc::clone(&self.run));
        let name = format!("{}::{}", stand.name, self.name);
        Trial::ignorable_test(name.clone(), move || {
            let _alone = stand.alone();
            Ok(match run(&stand) {
                Ok(()) => Completion::Completed,
                Err(Reason::NotFor(why)) => Completion::ignored_with(why),
                Err(Reason::Missing(what)) => {
                    println!("SKIPPED: {name}: {what}");
                    Completion::ignored_with(what)
                }
            })
        })
    }
}

/// The functions of a module, as tests.
macro_rules! list {
    ($module:literal, $is_for:expr, $($name:ident),* $(,)?) => {
        pub(crate) fn each() -> Vec<crate::Test> {
            vec![$(crate::Test::each(concat!($module, "::", stringify!($name)), $is_for, $name)),*]
        }
    };
}
pub(crate) use list;

/// Every test on every stand it is for, so ordered that tests in a row are of different stands.
fn trials(stands: &[Arc<Stand>]) -> Vec<Trial> {
    let mut queues: Vec<Vec<Trial>> = stands.iter().map(|_| Vec::new()).collect();
    let mut turns = BTreeMap::new();
    let tests = [
        driver::tests(),
        files::each(),
        overwrite::each(),
        buffered::each(),
        read_equality::tests(),
    ];
    for test in tests.iter().flatten() {
        let fitting = stands.iter().enumerate().filter(|(_, s)| test.fits(s));
        let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (at, stand) in fitting {
            if test.dealt {
                groups
                    .entry((stand.kind, stand.lba_bytes()))
                    .or_default()
                    .push(at);
            } else {
                queues[at].push(test.on(stand));
            }
        }
        for (group, members) in groups {
            let turn = turns.entry(group).or_insert(0_usize);
            let at = members[*turn % members.len()];
            *turn += 1;
            queues[at].push(test.on(&stands[at]));
        }
    }
    let mut queues: Vec<_> = queues.into_iter().map(Vec::into_iter).collect();
    let told = "read_equality::every_kind_of_difference_is_told";
    let told = Trial::test(told, || {
        read_equality::every_kind_of_difference_is_told();
        Ok(())
    });
    let mut all = vec![told];
    loop {
        let before = all.len();
        all.extend(queues.iter_mut().filter_map(Iterator::next));
        if all.len() == before {
            return all;
        }
    }
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let conclusion = libtest_mimic::run(&args, trials(&stand::stands()));
    println!("stands in use at once: {}", stand::most_at_once());
    conclusion.exit_code()
}
