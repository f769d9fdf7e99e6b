//! What a vfio-user client sends: any bytes behind a proper greeting, or instead of one.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use xtent::internals::device::emu::{EmuConfig, Medium};
use xtent::internals::device::vfio_user::{Server, ServerOptions};

/// The first message: version 0.1, no capabilities.
const GREETING: [u8; 20] = [1, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Fits the socket's buffer, so that it can be sent before the other end receives.
const MOST_BYTES: usize = 16 << 10;

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let name = format!("xtent-fuzz-{}", std::process::id());
        let config = EmuConfig {
            medium: Medium::memory(1 << 20),
            max_io_queues: 4,
            interrupt_vectors: 5,
            spin_ns: 0,
            ..EmuConfig::default()
        };
        let options = ServerOptions {
            patience: Duration::from_millis(20),
            ..ServerOptions::default()
        };
        Server::bind(std::env::temp_dir().join(name), config, &options).expect("a server")
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let (mut client, socket) = UnixStream::pair().expect("a pair of sockets");
    if first & 1 == 0 {
        client.write_all(&GREETING).expect("room");
    }
    client
        .write_all(&data[..data.len().min(MOST_BYTES)])
        .expect("room");
    client.shutdown(Shutdown::Write).expect("a shutdown");
    server().serve_connection(&socket, &|| true, &mut |_| {});
});
