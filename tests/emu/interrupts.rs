//! Interrupts of completion queues (sections 3.3.3 and 5.3).

use xtent::ErrorKind;
use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, Mode};
use xtent::internals::nvme::spec::{Command, QUEUE_INTERRUPTS, QUEUE_VECTOR_SHIFT, StatusField};
use zerocopy::little_endian::U32;

use super::host::{Host, create_cq, create_sq, read, rings, stepped};

fn create_cq_with(vector: u32, iova: u64) -> Command {
    let mut command = create_cq(1, 8, iova);
    let dw11 = 1 | QUEUE_INTERRUPTS | vector << QUEUE_VECTOR_SHIFT;
    command.cdw10_15[1] = U32::new(dw11);
    command
}

#[test]
fn a_queue_raises_its_own_vector_once_for_what_was_posted_together() {
    let mut host = Host::new(EmuConfig {
        interrupt_vectors: 4,
        auto_relax: true,
        ..stepped()
    });
    let events: Vec<_> = (0..4).map(|n| host.device.interrupt(n).unwrap()).collect();
    let (sq, cq) = rings(&host.device, &host.heap, (1, 8), (1, 8));
    let made = host.admin(create_cq_with(2, cq.ring.iova().0));
    assert_eq!(made.status, StatusField::SUCCESS);
    assert!(events[0].take(), "the admin queue always interrupts");
    let made = host.admin(create_sq(1, 1, 8, sq.ring.iova().0));
    assert_eq!(made.status, StatusField::SUCCESS);
    assert!(events[0].take());
    let mut pair = super::host::Pair { sq, cq };
    let buf = host.buf(4096);
    for _ in 0..3 {
        host.submit(&mut pair, read(0, &buf));
    }
    assert!(events.iter().all(|event| !event.take()));
    host.device.step(3);
    assert!(events[2].take());
    assert!(events.iter().all(|event| !event.take()));
    for _ in 0..3 {
        assert!(pair.cq.pop().is_some());
    }
}

#[test]
fn vectors_that_there_are_not_are_refused() {
    let mut host = Host::new(EmuConfig {
        interrupt_vectors: 4,
        ..stepped()
    });
    let (_, cq) = rings(&host.device, &host.heap, (1, 8), (1, 8));
    for vector in [4, 0xffff] {
        let made = host.admin(create_cq_with(vector, cq.ring.iova().0));
        assert_eq!((made.status.sct(), made.status.sc()), (1, 8), "{vector}");
    }
    let error = host.device.interrupt(4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    let inline = Host::new(EmuConfig {
        mode: Mode::Inline,
        ..stepped()
    });
    assert_eq!(inline.device.interrupt_vectors(), 0);
    let error = inline.device.interrupt(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
