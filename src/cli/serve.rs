//! `xtent serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use xtent::internals::device::vfio_user::{Server, ServerEvent, ServerOptions};
use xtent::internals::target::TargetSpec;
use xtent::internals::target::controller_to_serve;

use super::failure::{Failure, complain};
use super::output::size_text;
use super::values::{mode, size, time};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(subcommand)]
    how: How,
}

#[derive(Debug, Subcommand)]
enum How {
    /// As a PCI controller on a vfio-user socket: for SPDK, QEMU's vfio-user-pci, or `vfio-user:`
    /// targets
    VfioUser(VfioUserArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "One client is served at a time; the next one waits until it has left. The client must share its \
    memory as files (memfd, tmpfs, hugetlbfs). SIGINT or SIGTERM ends the server: what was written is made durable \
    before.\n\n\
    A user who may connect to the socket (see --mode) may read and write the whole medium, and has the server's memory \
    charged for pages that it lends without having touched them (see --client-memory).\n\n\
    Examples:\n  \
    xtent serve vfio-user /run/disk/cntrl --media image:disk.img\n  \
    xtent ls vfio-user:/run/disk/cntrl /\n  \
    spdk_nvme_identify -g -r 'trtype:VFIOUSER traddr:/run/disk subnqn:nqn.2019-07.io.spdk:cnode0'"
)]
struct VfioUserArgs {
    /// The socket to listen at, or a directory, for the socket `cntrl` in it
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Where the blocks are: image:FILE or ram:SIZE, with their options (see `xtent --help`)
    #[arg(long, value_name = "TARGET")]
    media: String,
    /// The controller's model, as hosts see it
    #[arg(long, value_name = "TEXT")]
    model: Option<String>,
    /// Its serial number
    #[arg(long, value_name = "TEXT")]
    serial: Option<String>,
    /// I/O queue pairs to offer
    #[arg(long, value_name = "N", default_value_t = 63, value_parser = clap::value_parser!(u16).range(1..=511))]
    queues: u16,
    /// Lets clients write the doorbells by message only: the controller then sleeps while there is
    /// nothing to do
    #[arg(long)]
    no_mapped_doorbells: bool,
    /// Permission bits of the socket, in octal, whatever the umask; to connect takes the right to
    /// write
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    mode: u32,
    /// The most memory that a client may lend at a time [default: three quarters of the memory that
    /// this process may use, by the machine's size, its control group and `ulimit -v`, and of what
    /// these have left at the time]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    client_memory: Option<u64>,
    /// How long the controller polls its doorbells after the last work before it begins to sleep in
    /// between, for up to a millisecond
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = time)]
    spin: Duration,
}

pub(super) fn run(args: &ServeArgs) -> Result<(), Failure> {
    match &args.how {
        How::VfioUser(args) => vfio_user(args),
    }
}

fn vfio_user(args: &VfioUserArgs) -> Result<(), Failure> {
    let spec = TargetSpec::parse(&args.media)?;
    let mut config = controller_to_serve(&spec).map_err(Failure::target)?;
    config.max_io_queues = args.queues;
    config.interrupt_vectors = args.queues + 1;
    config.spin_ns = u64::try_from(args.spin.as_nanos()).unwrap_or(u64::MAX);
    config.model = args.model.clone().unwrap_or(config.model);
    config.serial = args.serial.clone().unwrap_or(config.serial);
    let served = format!(
        "{}, {} in blocks of {} bytes{}, as `{}` ({})",
        args.media,
        size_text(config.medium.len_bytes()),
        config.lba_bytes,
        if config.read_only { ", read-only" } else { "" },
        config.model,
        config.serial,
    );
    let options = ServerOptions {
        map_doorbells: !args.no_mapped_doorbells,
        socket_mode: args.mode,
        most_lent_bytes: args.client_memory,
        ..ServerOptions::default()
    };
    let server = Server::bind(&args.socket, config, &options)?;
    let lent = size_text(options.lent_bytes());
    complain(&format!(
        "serving {served} at {}; a client may lend up to {lent}",
        server.path().display()
    ));
    if server.is_replaceable() {
        complain(
            "warning: other users may write to the socket's directory, or one above it, and put another socket in its \
             place",
        );
    }
    server.serve(
        || xtent::internals::sys::interrupted().is_none(),
        |event| match event {
            ServerEvent::Connected => complain("a client has connected"),
            ServerEvent::Left => complain("the client has left"),
            ServerEvent::CutOff(why) => complain(&format!("the client was cut off: {why}")),
            ServerEvent::MapRefused {
                address,
                len_bytes,
                why,
                errno,
            } => {
                let errno = std::io::Error::from_raw_os_error(errno);
                complain(&format!(
                    "refused to map {} of the client's at {address:#x}: {why}: {errno}",
                    size_text(len_bytes),
                ));
            }
            _ => {}
        },
    )?;
    server.finish()?;
    complain("ended; what was written is durable");
    Ok(())
}
