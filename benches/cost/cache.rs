//! Page cache cases: hits, without the copy. 64 bytes are copied where a copy is unavoidable: a
//! call of memcpy and some 20 instructions in it; the copy of whole pages is not counted.

use xtent::internals::cache::{Cache, CacheConfig, FileCache, Tally};

const PAGES: u64 = 1024;

fn filled() -> xtent::Result<FileCache> {
    let config = CacheConfig {
        limit_bytes: 8 << 20,
        ..CacheConfig::default()
    };
    let cache = Cache::new(&crate::heap(), config)?;
    let file = FileCache::new(&cache, PAGES * 4096, 4096)?;
    for page in 0..PAGES {
        assert_eq!(file.write_new(page * 4096, &[7; 4096]), Some(true));
    }
    Ok(file)
}

fn position(n: usize) -> u64 {
    (n as u64 * 7 % PAGES) * 4096 + 64
}

pub(crate) fn read(operations: usize) -> xtent::Result<()> {
    let file = filled()?;
    let mut tally = Tally::default();
    let mut buf = [0; 64];
    for n in 0..operations {
        assert_eq!(
            host_side_read_hit(&file, &mut tally, position(n), &mut buf),
            64
        );
        assert_eq!(buf[63], 7);
    }
    Ok(())
}

pub(crate) fn write(operations: usize) -> xtent::Result<()> {
    let file = filled()?;
    let mut tally = Tally::default();
    for n in 0..operations {
        assert_eq!(
            host_side_write_hit(&file, &mut tally, position(n), &[9; 64]),
            64
        );
    }
    Ok(())
}

pub(crate) fn view(operations: usize) -> xtent::Result<()> {
    let file = filled()?;
    let mut tally = Tally::default();
    for n in 0..operations {
        assert_eq!(host_side_view(&file, &mut tally, position(n) - 64), 7);
    }
    Ok(())
}

pub(crate) fn read_page(operations: usize) -> xtent::Result<()> {
    let file = filled()?;
    let mut tally = Tally::default();
    let mut buf = [0; 4096];
    for n in 0..operations {
        let done = host_side_read_hit(&file, &mut tally, position(n) - 64, &mut buf);
        assert_eq!((done, buf[4095]), (4096, 7));
    }
    Ok(())
}

pub(crate) fn write_page(operations: usize) -> xtent::Result<()> {
    let file = filled()?;
    let mut tally = Tally::default();
    let data = [9; 4096];
    for n in 0..operations {
        let done = host_side_write_hit(&file, &mut tally, position(n) - 64, &data);
        assert_eq!(done, 4096);
    }
    Ok(())
}

#[inline(never)]
fn host_side_read_hit(file: &FileCache, tally: &mut Tally, pos: u64, buf: &mut [u8]) -> usize {
    file.read_hit(tally, pos, buf)
}

#[inline(never)]
fn host_side_write_hit(file: &FileCache, tally: &mut Tally, pos: u64, data: &[u8]) -> usize {
    file.write_hit(tally, pos, data)
}

#[inline(never)]
fn host_side_view(file: &FileCache, tally: &mut Tally, pos: u64) -> u8 {
    file.view(tally, pos, 4096).map_or(0, |view| view[0])
}
