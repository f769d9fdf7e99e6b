//! Views that are many, held for long, or leaked.

use xtent::ErrorKind;

use super::stand::{FILE_BYTES, beside_others, buffered, direct, plain};

/// More views of a dirty page than are counted in its word keep nothing from going on.
#[test]
fn thousands_of_views_of_a_dirty_page() {
    let Some(_beside) = beside_others() else {
        return;
    };
    let (volume, mut io) = plain();
    let file = buffered(&volume, &mut io, "first").unwrap();
    file.write_at(&mut io, &[5; 4096], 0).unwrap();
    let mut views = Vec::new();
    for _ in 0..2048 {
        views.push(file.view(&mut io, 0..4096).unwrap().unwrap());
    }
    file.sync_data(&mut io).unwrap();
    assert_eq!(io.cache_stats().unwrap().dirty_pages, 0);
    for _ in 0..5000 {
        views.push(file.view(&mut io, 0..4096).unwrap().unwrap());
    }
    // Written to, with all of them held: they keep what they saw.
    file.write_at(&mut io, &[6; 100], 10).unwrap();
    volume.sync(&mut io).unwrap();
    assert!(views.iter().all(|view| view[..] == [5; 4096]));
    let now = file.view(&mut io, 0..200).unwrap().unwrap();
    assert!(now[..10] == [5; 10] && now[10..110] == [6; 100] && now[110..] == [5; 90]);
    drop((views, now));
    file.write_at(&mut io, &[7; 4096], 0).unwrap();
    file.sync_data(&mut io).unwrap();
    drop((file, io, volume));
}

/// A leaked mutable view keeps nothing from going on but direct writes to its page, which say so.
#[test]
fn a_leaked_mutable_view_hangs_nothing() {
    let Some(_beside) = beside_others() else {
        return;
    };
    let (volume, mut io) = plain();
    let file = buffered(&volume, &mut io, "first").unwrap();
    file.write_at(&mut io, &[1; 8192], 0).unwrap();
    let mut view = file.view_mut(&mut io, 100..200).unwrap().unwrap();
    view.fill(2);
    std::mem::forget(view);
    let mut found = [0; 8192];
    file.read_at(&mut io, &mut found, 0).unwrap();
    assert!(found == [1; 8192], "it writes nothing");
    file.sync_data(&mut io).unwrap();
    file.write_at(&mut io, &[3; 50], 150).unwrap();
    volume.sync(&mut io).unwrap();
    let mut view = file.view_mut(&mut io, 0..10).unwrap().unwrap();
    view.fill(4);
    drop(view);
    file.sync_data(&mut io).unwrap();
    file.read_at(&mut io, &mut found, 0).unwrap();
    assert!(found[..10] == [4; 10] && found[10..150] == [1; 140] && found[150..200] == [3; 50]);
    let by_device = direct(&volume, &mut io, "first").unwrap();
    let mut buf = io.alloc(4096).unwrap();
    by_device.read_dma_at(&mut io, &mut buf, 0).unwrap();
    assert!(buf[..4096] == found[..4096]);
    by_device.write_dma_at(&mut io, &mut buf, 4096).unwrap();
    let error = by_device.write_dma_at(&mut io, &mut buf, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(error.offset(), Some(0), "{error}");
    assert!(error.to_string().contains("first"), "{error}");
    drop((file, by_device, io, volume));
}

/// Bytes written beside a mutable view while it is held are kept, whichever way they are written
/// and read or their page is dropped from the cache.
#[test]
fn a_mutable_view_that_is_held_for_long_loses_no_other_write() {
    let Some(_beside) = beside_others() else {
        return;
    };
    let (volume, mut io) = plain();
    let file = buffered(&volume, &mut io, "first").unwrap();
    let mut model = vec![0_u8; FILE_BYTES];
    let mut write = |io: &mut _, at: usize, byte: u8| {
        file.write_at(io, &[byte; 64], at as u64).unwrap();
        model[at..at + 64].fill(byte);
    };
    write(&mut io, 0, 1);
    let mut first = file.view_mut(&mut io, 512..700).unwrap().unwrap();
    let mut second = file.view_mut(&mut io, 600..800).unwrap().unwrap();
    write(&mut io, 700, 2);
    first.fill(3);
    second.fill(4);
    file.sync_data(&mut io).unwrap();
    write(&mut io, 3000, 5);
    drop(first);
    write(&mut io, 64, 6);
    file.sync_data(&mut io).unwrap();
    file.advise(&mut io, 0..u64::MAX, xtent::volume::Advice::DontNeed)
        .unwrap();
    drop(second);
    model[512..700].fill(3);
    model[600..800].fill(4);
    let mut found = vec![9; FILE_BYTES];
    file.read_at(&mut io, &mut found, 0).unwrap();
    assert!(found == model);
    file.sync_data(&mut io).unwrap();
    let mut found = vec![9; FILE_BYTES];
    let by_device = direct(&volume, &mut io, "first").unwrap();
    by_device.read_at(&mut io, &mut found, 0).unwrap();
    assert!(found == model, "on the device");
}

/// A direct write waits for a mutable view of another thread.
#[test]
fn a_direct_write_comes_after_a_mutable_view() {
    let Some(_beside) = beside_others() else {
        return;
    };
    let (volume, mut io) = plain();
    let file = buffered(&volume, &mut io, "first").unwrap();
    let by_device = direct(&volume, &mut io, "first").unwrap();
    let mut view = file.view_mut(&mut io, 0..4096).unwrap().unwrap();
    view.fill(1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut io = volume.io().unwrap();
            let mut buf = io.alloc(512).unwrap();
            buf.fill(2);
            by_device.write_dma_at(&mut io, &mut buf, 512).unwrap();
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(view);
        writer.join().unwrap();
    });
    let mut found = [0; 4096];
    file.read_at(&mut io, &mut found, 0).unwrap();
    assert!(found[..512] == [1; 512] && found[512..1024] == [2; 512]);
    assert!(found[1024..] == [1; 3072]);
}
