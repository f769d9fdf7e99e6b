//! Overwrites the start of a file through the page cache: `buffered_write TARGET PATH TEXT`.

use xtent::volume::{OpenOptions, Volume};

fn main() -> xtent::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let volume = Volume::open(&args[1])?;
    let mut io = volume.io()?;
    let options = OpenOptions::new().read(true).write(true).buffered(true);
    let file = options.open(&volume, &mut io, &args[2])?;
    // Any offset and length; the page is read from the device if it is not cached.
    file.write_all_at(&mut io, args[3].as_bytes(), 0)?;
    // Now it is on the device.
    file.sync_data(&mut io)?;
    drop((file, io));
    // Returns the errors that dropping the last handle could not.
    volume.close()
}
