//! Reads by async tasks on one `Io`, with tokio: `futures TARGET PATH`. The thread sleeps while
//! nothing has ended.

use std::error::Error;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;
use xtent::target::{TargetOptions, Wait};
use xtent::volume::aio::AsyncIo;
use xtent::volume::{MountOptions, Volume};

/// Completes the operations of all tasks.
async fn drive(io: AsyncIo) -> std::io::Result<()> {
    #[allow(
        deprecated,
        reason = "its successor is unsafe: the descriptor must stay open, as that of a handle does"
    )]
    let event = AsyncFd::with_interest(io.clone(), Interest::READABLE)?;
    let readable = || async {
        if let Ok(ready) = timeout(Duration::from_secs(1), event.readable()).await {
            ready?.clear_ready();
        }
        Ok(())
    };
    match io.drive(readable).await {
        Err(error) => Err(error),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let options = TargetOptions::new().wait(Wait::Interrupt);
    let volume = Volume::open_with(&args[1], &options, &MountOptions::new())?;
    let mut io = volume.io()?;
    let file = volume.open_file(&mut io, &args[2])?;
    let io = AsyncIo::new(io)?;
    let driver = tokio::spawn(drive(io.clone()));
    let blocks = file.len().div_ceil(4096).min(64);
    let tasks: Vec<_> = (0..blocks)
        .map(|block| {
            let (io, file) = (io.clone(), file.clone());
            tokio::spawn(async move {
                let buf = io.alloc(4096)?;
                io.read_at(&file, buf, block * 4096).await.result
            })
        })
        .collect();
    let mut bytes = 0;
    for task in tasks {
        bytes += task.await??;
    }
    println!("{bytes} bytes in {blocks} reads");
    driver.abort();
    Ok(())
}
