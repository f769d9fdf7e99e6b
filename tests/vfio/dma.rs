//! A deliberate DMA to nowhere, so that the virtual machine's look at the IOMMU's faults is seen to
//! work.

use xtent::internals::block::{Op, Queue};
use xtent::internals::mem::{Heap, HeapConfig, Segment};
use xtent::internals::units::Iova;

use super::rig::{alone, bring_up, chain, drain, open, told};

/// The IOMMU must report it: the job expects that, and the host checks.
#[test]
#[expect(unsafe_code, reason = "names an address that is mapped nowhere")]
fn a_read_into_unmapped_memory_faults_in_the_iommu() {
    let Some(addresses) = told("XTENT_BAD_DMA") else {
        return;
    };
    let _alone = alone();
    let device = open(&addresses[0]);
    let heap = Heap::new(HeapConfig::default());
    let (_controller, mut pair) = bring_up(&device, &heap);
    let nowhere = [
        // SAFETY: the arenas of this test are far below.
        unsafe { Segment::anywhere(Iova(0x70_0000_0000), 4096) },
    ];
    let blocks = 4096 / u64::from(pair.limits().block_bytes);
    pair.submit(&chain(Op::Read, 0, blocks, &nowhere, 1))
        .unwrap();
    // Hardware ends it with an error; QEMU's controller says that all is well.
    println!("it ended with: {}", drain(&mut pair)[&1]);
}
