//! References of files: one for all operations of a thread.

use super::*;

#[test]
fn operations_count_no_reference_of_their_file() {
    let mut bench = bench(11, true, true);
    let files = [1, 2].map(|extents| file(&[(MappingKind::Mapped, 4096); 2][..extents], 4096));
    for n in 0..100 {
        for file in &files {
            let request = DirectRequest {
                what: [What::Read, PLAIN][n % 2],
                source: Some(file),
                offset: 0,
                buf: bench.buf(4096),
                user_data: 0,
            };
            let _ = bench.direct.submit(&mut bench.queue, request);
            assert_eq!(Arc::strong_count(file), 2, "one for all of them");
        }
        bench
            .direct
            .poll(&mut bench.queue, 3, &mut Heard(|_, of: Option<_>| drop(of)));
    }
    assert!(bench.direct.outstanding() > 1);
    drop(bench);
    assert!(files.iter().all(|file| Arc::strong_count(file) == 1));
}
