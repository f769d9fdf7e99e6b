//! Prints the first block of a file: `read TARGET PATH`.

use xtent::volume::Volume;

fn main() -> xtent::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let volume = Volume::open(&args[1])?;
    let mut io = volume.io()?; // one per thread: its own NVMe queue pair
    let file = volume.open_file(&mut io, &args[2])?;
    let mut buf = io.alloc(4096)?; // DMA memory: the device writes to it
    let n = file.read_dma_at(&mut io, &mut buf, 0)?;
    print!("{}", String::from_utf8_lossy(&buf[..n]));
    Ok(())
}
