//! The embedded controller behind a socket, served by a thread of this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use xtent::internals::device::emu::EmuConfig;
use xtent::internals::device::vfio_user::{Server, ServerEvent, ServerOptions};
use xtent::internals::target::TargetSpec;
use xtent::internals::target::controller_to_serve;

use super::disk::{Hands, ImageHands};

/// A server, until dropped: then it has ended orderly, with everything written made durable.
pub struct Serving {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<ServerEvent>>>,
}

impl Serving {
    /// Serves a controller at a socket of its own.
    pub fn start(config: EmuConfig, options: &ServerOptions) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = Server::bind(dir.path(), config, options).expect("a server");
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let serve = move || {
            let mut events = Vec::new();
            server
                .serve(
                    || !asked.load(Ordering::Relaxed),
                    |event| events.push(event),
                )
                .expect("serving");
            server.finish().expect("an orderly end");
            events
        };
        Self {
            dir,
            stop,
            thread: Some(std::thread::spawn(serve)),
        }
    }

    /// Where clients connect.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("cntrl")
    }

    /// Ends it; what happened meanwhile.
    pub fn end(mut self) -> Vec<ServerEvent> {
        self.join()
    }

    fn join(&mut self) -> Vec<ServerEvent> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or_else(Vec::new, |thread| {
            thread.join().expect("the server's thread")
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.join();
        }
    }
}

/// An image file that the kernel and a server have in turns.
pub struct ServedHands {
    image: ImageHands,
    options: String,
    serving: Option<Serving>,
}

impl ServedHands {
    /// A sparse file of `size_bytes`; it is served with these options of a target.
    pub fn new(size_bytes: u64, options: &str) -> Self {
        Self {
            image: ImageHands::new(size_bytes, options),
            options: options.to_owned(),
            serving: None,
        }
    }

    fn serve(path: &Path, options: &str) -> Serving {
        let spec = format!("image:{},{options}", path.display());
        let spec = TargetSpec::parse(&spec).expect("a target");
        let config = controller_to_serve(&spec).expect("a controller");
        Serving::start(config, &ServerOptions::default())
    }
}

impl Hands for ServedHands {
    fn to_kernel(&mut self) -> PathBuf {
        self.serving = None;
        self.image.path()
    }

    fn to_xtent(&mut self) -> String {
        let path = self.image.path();
        let serving = self
            .serving
            .get_or_insert_with(|| Self::serve(&path, &self.options));
        format!("vfio-user:{}", serving.socket().display())
    }
}
