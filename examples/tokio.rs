//! Reads for async tasks: a thread owns the `Io` and answers over channels: `tokio TARGET PATH`.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;

use tokio::sync::oneshot;
use xtent::volume::{DmaBuf, File, Io, SubmitReason, Volume};

/// A read of one block, and where its result goes.
struct Read {
    offset: u64,
    reply: oneshot::Sender<xtent::Result<(DmaBuf, usize)>>,
}

/// A handle that tasks share.
#[derive(Clone)]
struct Reader(Sender<Read>);

impl Reader {
    async fn read(&self, offset: u64) -> xtent::Result<(DmaBuf, usize)> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Read { offset, reply })
            .expect("the thread runs");
        answer.await.expect("every read is answered")
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> xtent::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let volume = Volume::open(&args[1])?;
    let mut io = volume.io()?;
    let file = volume.open_file(&mut io, &args[2])?;
    let blocks = file.len().div_ceil(4096).min(64);
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || serve(&mut io, &file, &receiver));
    let reader = Reader(sender);
    let tasks: Vec<_> = (0..blocks)
        .map(|block| {
            let reader = reader.clone();
            tokio::spawn(async move { reader.read(block * 4096).await })
        })
        .collect();
    let mut bytes = 0;
    for task in tasks {
        bytes += task.await.expect("no panic")?.1;
    }
    println!("{bytes} bytes in {blocks} reads");
    drop(reader);
    thread.join().expect("no panic");
    Ok(())
}

/// Submits what comes, and polls while anything is in flight; sleeps when nothing is.
fn serve(io: &mut Io, file: &File, requests: &Receiver<Read>) {
    let mut waiting: Vec<Option<Read>> = (0..io.depth()).map(|_| None).collect();
    loop {
        let next = match (io.outstanding(), io.outstanding() < waiting.len()) {
            (0, _) => requests.recv().map_err(|_| TryRecvError::Disconnected),
            (_, true) => requests.try_recv(),
            (_, false) => Err(TryRecvError::Empty),
        };
        match next {
            Ok(read) => start(io, file, read, &mut waiting),
            Err(TryRecvError::Disconnected) if io.outstanding() == 0 => return,
            Err(_) => {
                let ended = io.poll(32, |done| {
                    let slot = usize::try_from(done.user_data).expect("a slot");
                    if let Some(read) = waiting[slot].take() {
                        // The task may be gone.
                        let _ = read.reply.send(done.result.map(|n| (done.buf, n)));
                    }
                });
                if ended == 0 {
                    io.relax();
                }
            }
        }
    }
}

fn start(io: &mut Io, file: &File, read: Read, waiting: &mut [Option<Read>]) {
    let slot = waiting.iter().position(Option::is_none).expect("a slot");
    let submitted = io.alloc(4096).and_then(|buf| {
        io.submit_read(file, read.offset, buf, slot as u64)
            .map_err(|error| match error.reason {
                SubmitReason::Error(error) => error,
                SubmitReason::Full => unreachable!("no more than the depth are in flight"),
            })
    });
    match submitted {
        Ok(()) => waiting[slot] = Some(read),
        Err(error) => drop(read.reply.send(Err(error))),
    }
}
