//! Versions of mappings under loom: operations that begin while the mappings are replaced, beside a
//! thread that reuses the blocks which the new version does not have.

use loom::sync::Arc;
use loom::sync::atomic::{
    AtomicU32,
    Ordering::{Relaxed, SeqCst},
    fence,
};
use loom::thread;

use super::Versions;

struct Disk {
    versions: Versions<u32>,
    /// Whose the blocks are. Ordered by nothing but the versions.
    blocks: AtomicU32,
}

#[test]
fn blocks_are_reused_only_when_no_operation_may_use_them() {
    loom::model(|| {
        let disk = Arc::new(Disk {
            versions: Versions::new(1),
            blocks: AtomicU32::new(1),
        });
        let user = disk.versions.register();
        let other = Arc::clone(&disk);
        let thread = thread::spawn(move || {
            for _ in 0..2 {
                if user.begin(&other.versions, || fence(SeqCst)) {
                    assert_eq!(*user.version(), 1);
                    assert_eq!(other.blocks.load(Relaxed), 1);
                    user.end();
                }
            }
        });
        let number = disk.versions.replace(2);
        let is_reused = disk.versions.is_quiet(number);
        if is_reused {
            disk.blocks.store(2, Relaxed);
        }
        thread.join().unwrap();
        assert!(disk.versions.is_quiet(number));
        assert_eq!(*disk.versions.register().version(), 2);
    });
}
