//! SPDK's own target, started by a test: disks over NVMe/TCP on loopback and over vfio-user.
//!
//! The program is looked for in `XTENT_SPDK_BIN`, on the path, and where pkg-config says that SPDK
//! is.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::disk::Hands;

/// Longer than a start takes on a machine that does much else.
const HANG_LIMIT: Duration = Duration::from_secs(120);

/// The target's program, if SPDK is installed.
pub fn program() -> Option<PathBuf> {
    const NAME: &str = "nvmf_tgt";
    let named = std::env::var_os("XTENT_SPDK_BIN").map(|dir| PathBuf::from(dir).join(NAME));
    let prefix = || {
        let libdir = Command::new("pkg-config")
            .args(["--variable=libdir", "libdpdk"])
            .output()
            .ok()?;
        let libdir = PathBuf::from(String::from_utf8(libdir.stdout).ok()?.trim());
        Some(libdir.parent()?.join("bin").join(NAME))
    };
    let found = [named, super::tool(NAME), prefix()];
    found.into_iter().flatten().find(|path| path.is_file())
}

/// Why there is no target; `None` when there can be one.
pub fn missing() -> Option<String> {
    if !super::is_root() {
        return Some("SPDK's target needs root".to_owned());
    }
    let none = program().is_none();
    none.then(|| "SPDK's nvmf_tgt is not installed (XTENT_SPDK_BIN names its directory)".to_owned())
}

/// What a target exports as namespace 1.
#[derive(Debug, Clone)]
pub enum Disk {
    /// A file, which keeps its bytes when the target is killed.
    File { path: PathBuf, block_bytes: u32 },
    /// Memory.
    Memory { mib: u64, block_bytes: u32 },
    /// Memory with blocks of 4 KiB, and each operation takes so long.
    Slow { mib: u64, micros: u64 },
}

/// A running target with one subsystem, killed when it is dropped.
#[derive(Debug)]
pub struct Nvmf {
    dir: tempfile::TempDir,
    disk: Disk,
    port: u16,
    child: Option<Child>,
}

pub const SUBNQN: &str = "nqn.2016-06.io.spdk:xtent-test";

impl Nvmf {
    pub fn start(disk: Disk) -> Self {
        let builder = tempfile::Builder::new().prefix("xtent-").tempdir();
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut target = Self {
            dir: builder.expect("a temporary directory"),
            disk,
            port: free.local_addr().expect("its number").port(),
            child: None,
        };
        drop(free);
        std::fs::create_dir(target.socket_dir()).expect("a directory for the socket");
        target.restart();
        target
    }

    /// Kills the target, if it runs, without a warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it (again) with the same disk and addresses, and waits until it answers.
    pub fn restart(&mut self) {
        self.kill();
        for stale in ["rpc.sock", "rpc.sock.lock", "vfu/cntrl"] {
            let _ = std::fs::remove_file(self.dir.path().join(stale));
        }
        let config = self.dir.path().join("config.json");
        std::fs::write(&config, self.config().to_string()).expect("the configuration");
        let log = std::fs::File::create(self.log()).expect("the log");
        let child = Command::new(program().expect("nvmf_tgt"))
            .args(["-m", &core_mask(), "--no-huge", "-s", "768", "--no-pci"])
            .args(["--num-trace-entries", "0"])
            .args(["--disable-cpumask-locks", "-c"])
            .arg(&config)
            .arg("-r")
            .arg(self.dir.path().join("rpc.sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("nvmf_tgt");
        self.child = Some(child);
        let start = Instant::now();
        while !self.answers() {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().expect("nvmf_tgt"));
            assert!(
                ended.is_none() && start.elapsed() < HANG_LIMIT,
                "nvmf_tgt does not start ({ended:?}): {}",
                std::fs::read_to_string(self.log()).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("a running target").id();
        let status = Command::new("kill")
            .args([format!("-{name}"), pid.to_string()])
            .status();
        assert!(status.expect("kill").success());
    }

    fn answers(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            && self.socket_dir().join("cntrl").exists()
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("vfu")
    }

    fn config(&self) -> Value {
        let call = |method: &str, params: Value| json!({ "method": method, "params": params });
        let memory = |name: &str, mib: u64, block_bytes: u64| {
            let blocks = (mib << 20) / block_bytes;
            let params = json!({ "name": name, "num_blocks": blocks, "block_size": block_bytes });
            call("bdev_malloc_create", params)
        };
        let disk = match &self.disk {
            Disk::File { path, block_bytes } => vec![call(
                "bdev_aio_create",
                json!({ "name": "disk", "filename": path, "block_size": block_bytes }),
            )],
            Disk::Memory { mib, block_bytes } => {
                vec![memory("disk", *mib, u64::from(*block_bytes))]
            }
            Disk::Slow { mib, micros } => vec![
                memory("memory", *mib, 4096),
                call(
                    "bdev_delay_create",
                    json!({
                        "name": "disk",
                        "base_bdev_name": "memory",
                        "avg_read_latency": micros,
                        "p99_read_latency": micros,
                        "avg_write_latency": micros,
                        "p99_write_latency": micros,
                    }),
                ),
            ],
        };
        let vfio_user =
            json!({ "trtype": "VFIOUSER", "traddr": self.socket_dir(), "trsvcid": "0" });
        let nvmf = [
            call("nvmf_create_transport", json!({ "trtype": "TCP" })),
            call("nvmf_create_transport", json!({ "trtype": "VFIOUSER" })),
            call(
                "nvmf_create_subsystem",
                json!({ "nqn": SUBNQN, "allow_any_host": true, "serial_number": "XTENT" }),
            ),
            call(
                "nvmf_subsystem_add_ns",
                json!({ "nqn": SUBNQN, "namespace": { "bdev_name": "disk", "nsid": 1 } }),
            ),
            call(
                "nvmf_subsystem_add_listener",
                json!({ "nqn": SUBNQN, "listen_address": vfio_user }),
            ),
            call("nvmf_subsystem_add_listener", self.tcp_listener()),
        ];
        json!({ "subsystems": [
            { "subsystem": "bdev", "config": disk },
            { "subsystem": "nvmf", "config": nvmf },
        ]})
    }

    fn tcp_listener(&self) -> Value {
        let port = self.port.to_string();
        json!({
            "nqn": SUBNQN,
            "listen_address":
                { "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port },
        })
    }

    /// Throws all hosts out, and lets them in again.
    pub fn disconnect_all(&self) {
        self.rpc("nvmf_subsystem_remove_listener", &self.tcp_listener());
        self.rpc("nvmf_subsystem_add_listener", &self.tcp_listener());
    }

    /// Closes the socket of its controller, and continues to run.
    pub fn hang_up(&self) {
        let listener = json!({
            "nqn": SUBNQN,
            "listen_address":
                { "trtype": "VFIOUSER", "traddr": self.socket_dir(), "trsvcid": "0" },
        });
        self.rpc("nvmf_subsystem_remove_listener", &listener);
    }

    fn rpc(&self, method: &str, params: &Value) -> Value {
        let mut socket =
            UnixStream::connect(self.dir.path().join("rpc.sock")).expect("the target's socket");
        socket
            .set_read_timeout(Some(HANG_LIMIT))
            .expect("a time limit");
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        socket
            .write_all(call.to_string().as_bytes())
            .expect("the target's socket");
        let mut answer = Vec::new();
        loop {
            if let Ok(value) = serde_json::from_slice::<Value>(&answer) {
                assert!(value["error"].is_null(), "{method}: {value}");
                return value["result"].clone();
            }
            let mut piece = [0; 4096];
            match socket.read(&mut piece) {
                Ok(0) => panic!("{method}: the target hung up"),
                Ok(n) => answer.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{method}: {error}"),
            }
        }
    }

    /// The transport id of its disk over TCP.
    pub fn tcp(&self) -> String {
        format!("{} subnqn={SUBNQN}", self.discovery())
    }

    /// The transport id of its discovery service.
    pub fn discovery(&self) -> String {
        format!("trtype=TCP traddr=127.0.0.1 trsvcid={}", self.port)
    }

    /// The transport id of its disk over vfio-user.
    pub fn vfio_user(&self) -> String {
        format!("trtype=VFIOUSER traddr={}", self.socket_dir().display())
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Nvmf {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file that SPDK's target exports to xtent, and the kernel has between.
#[derive(Debug)]
pub struct NvmfHands {
    target: Nvmf,
    path: PathBuf,
    vfio_user: bool,
    _dir: tempfile::TempDir,
}

impl NvmfHands {
    /// A sparse file of `size_bytes`, over vfio-user or TCP.
    pub fn new(size_bytes: u64, block_bytes: u32, vfio_user: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk.img");
        let file = std::fs::File::create(&path).expect("the image");
        file.set_len(size_bytes).expect("the image's size");
        let disk = Disk::File {
            path: path.clone(),
            block_bytes,
        };
        Self {
            target: Nvmf::start(disk),
            path,
            vfio_user,
            _dir: dir,
        }
    }
}

impl Hands for NvmfHands {
    fn to_kernel(&mut self) -> PathBuf {
        self.path.clone()
    }

    fn to_xtent(&mut self) -> String {
        match self.vfio_user {
            true => format!("spdk:{}", self.target.vfio_user()),
            false => format!("spdk:{}", self.target.tcp()),
        }
    }
}

/// The last processor that this process may use: its poller leaves the others alone.
fn core_mask() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let last = list.and_then(|list| list.trim().rsplit([',', '-']).next());
    format!("[{}]", last.unwrap_or("0"))
}
