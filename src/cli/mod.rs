//! The command line: one file a command, and what they share.
//!
//! Layer 7. Results go to stdout, everything else to stderr as one line `xtent: ...`. The exit
//! status says what kind of failure it was ([`EXIT_STATUS`]).
#![forbid(unsafe_code)]

mod acl;
mod bench;
mod bench_args;
mod bench_holes;
mod bench_text;
mod cache_table;
mod cat;
mod changing;
mod check;
mod chmod;
mod chown;
mod compare;
mod compare_args;
mod compare_engines;
mod df;
mod docs;
mod du;
mod events;
mod failure;
mod fallocate;
mod fiemap;
mod file_mode;
mod find;
mod find_expr;
mod fio_options;
mod get;
mod info;
mod list;
mod log;
mod ls;
mod output;
mod owner;
mod put;
mod put_raw;
mod quoting;
mod serve;
mod sizes;
mod smart;
mod stat;
mod touch;
mod touch_time;
mod tree;
mod tree_print;
mod truncate;
mod values;
mod walk;
mod xattr;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use xtent::ErrorKind;
use xtent::internals::mem::HugePages;
use xtent::internals::target::TargetSpec;
use xtent::target::{ControllerMode, TargetOptions};
use xtent::volume::{MountOptions, Volume};

use self::failure::Failure;

/// What the exit status means, for --help and the man pages.
const EXIT_STATUS: &str = "\
Exit status:
    0  success
    1  the operation failed: no such file in the volume, a file that is there already, ...
    2  wrong usage
    3  the target is not there or cannot be used: missing, busy, a dirty log, an unsupported feature, no permission
    4  the filesystem is corrupt, or data that was verified is wrong
    5  the device failed: I/O error, timeout, gone
  130  interrupted (128 + the signal's number); 141 when the reader of a pipe went away";

/// What scripts may rely on, for --help and the man pages.
const JSON: &str = "\
JSON (--json):
  The object, or each object of the array, has a field schema_version (1), which grows when a field changes its
  meaning or goes. A name that is not UTF-8 comes with its bytes, in hexadecimal, in a second field: NAME_hex.";

/// Variables of the environment, for --help and the man pages.
const ENVIRONMENT: &str = "\
Environment:
  XTENT_LOG           what the library reports on stderr: off, error, warn (the default), info, debug or trace,
                      also by module, such as warn,xtent::volume=debug
  XTENT_SPDK_LOG=1    show what SPDK and DPDK log";

const TARGETS: &str = "\
Targets:
  image:disk.img      a file behind the embedded NVMe controller; a bare path means the same
  pci:0000:01:00.0    an NVMe controller of this machine over VFIO (after vfio-setup.sh bind); pci:ADDRESS/NSID
                      where it has several namespaces
  ram:1G,load=FILE    memory behind the embedded controller, filled from a file
  vfio-user:SOCKET    a controller that another process serves (SPDK's nvmf_tgt, `xtent serve vfio-user`);
                      with nsid=N where it has several namespaces
  uring:/dev/nvme0n1  a block device, or a file, through the kernel's block layer (io_uring)
  'spdk:trtype=TCP traddr=192.0.2.1 trsvcid=4420 subnqn=NQN'
                      a controller that SPDK drives (TCP, RDMA, PCIe, VFIOUSER; nsid=N), where xtent was built
                      with SPDK; XTENT_SPDK=huge=auto|on|off,cores=MASK,shm=ID,mem=MIB,pci=on|off starts SPDK so
  Options follow after commas: lba=512|4096 mdts=N noiob=BLOCKS depth=N vwc=on|off threaded inline
  wait=poll|interrupt|adaptive (how threads wait for the device; default poll) dbbuf=on|off (shadow doorbells)
  part=N|NAME (a partition, of a GPT by its name too; `xtent info` lists them) offset=BYTES (where the filesystem
  begins) readonly noreplay (refuse a dirty log) norecovery (read the state without it: an old one) inuse (read
  although others use the image) discard=on (deallocate the blocks that files give back)";

/// Read and write XFS files with a user-space NVMe driver
#[derive(Debug, Parser)]
#[command(name = "xtent", version = crate::bench::environment::VERSION)]
#[command(after_help = "See `xtent COMMAND --help` for targets and examples.", after_long_help = help())]
#[command(max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

fn help() -> String {
    format!("{TARGETS}\n\n{JSON}\n\n{ENVIRONMENT}\n\n{EXIT_STATUS}")
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Shows the controller, the namespace and the filesystem
    Info(info::InfoArgs),
    /// Shows the health of a disk, its last errors and its firmware
    Smart(smart::SmartArgs),
    /// Lists NVMe controllers: of this machine, or what a discovery service offers
    List(list::ListArgs),
    /// Lists directories
    Ls(ls::LsArgs),
    /// Show file metadata
    Stat(stat::StatArgs),
    /// Writes files to standard output
    Cat(cat::CatArgs),
    /// Find files by name, type, size, time and other metadata
    Find(find::FindArgs),
    /// Show directories as a tree
    Tree(tree_print::TreeArgs),
    /// Show the space that files and directories use
    Du(du::DuArgs),
    /// Show the free space and inodes of the filesystem
    Df(df::DfArgs),
    /// Check the consistency of the filesystem
    Check(check::CheckArgs),
    /// Show extended attributes and access control lists
    Xattr(xattr::XattrArgs),
    /// Copies a file or a tree out of a volume
    Get(get::GetArgs),
    /// Overwrites a file of a volume with a local one
    Put(put::PutArgs),
    /// Change the permissions of files
    Chmod(chmod::ChmodArgs),
    /// Change owner and group of files
    Chown(chown::ChownArgs),
    /// Change the times of files
    Touch(touch::TouchArgs),
    /// Change the length of files
    Truncate(truncate::TruncateArgs),
    /// Allocate or free space of a file, or move its data
    Fallocate(fallocate::FallocateArgs),
    /// Shows where a file's data lies on the device
    Fiemap(fiemap::FiemapArgs),
    /// Measure a load on one file, with fio's options
    Bench(Box<bench_args::BenchArgs>),
    /// Measure the kernel's XFS and xtent on the same image or disk
    Compare(Box<compare_args::CompareArgs>),
    /// Serves a disk image or memory as an NVMe controller to other processes
    Serve(serve::ServeArgs),
    /// Writes the man pages into a directory
    Man(docs::ManArgs),
    /// Writes the completions for a shell to standard output
    Completions(docs::CompletionsArgs),
}

/// Where the volume is.
#[derive(Debug, Args)]
struct TargetArg {
    /// The target, such as image:disk.img (see `xtent --help`)
    #[arg(value_name = "TARGET")]
    target: String,
}

impl TargetArg {
    /// Opens it for reading, with the controller on this thread: for short work.
    fn open_to_read(&self) -> Result<Volume, Failure> {
        self.open(
            &reading().controller(ControllerMode::Inline),
            &MountOptions::new(),
        )
    }

    fn open(&self, options: &TargetOptions, mount: &MountOptions) -> Result<Volume, Failure> {
        self.check()?;
        Volume::open_with(&self.target, options, mount).map_err(Failure::target)
    }

    /// Tells a target that is written wrongly (usage) from one that cannot be opened.
    fn check(&self) -> Result<(), Failure> {
        match TargetSpec::parse(&self.target) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::PermissionDenied
                ) =>
            {
                Err(Failure::target(error))
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }
}

/// Options to copy files: hugepages would not pay off, nor would a notice that there are none.
fn copying() -> TargetOptions {
    TargetOptions::new().huge_pages(HugePages::Never)
}

/// The same, for reading only.
fn reading() -> TargetOptions {
    copying().read_only(true)
}

/// Paths inside the volume are bytes; the host gives them as such.
type VolumePath = OsString;
/// A path of the host.
type LocalPath = PathBuf;

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return fio_options::explain(&error),
    };
    if let Err(failure) = log::install() {
        return failure.report();
    }
    xtent::internals::sys::ignore_file_size_signal();
    xtent::internals::sys::catch_interrupts();
    let result = match cli.command {
        CliCommand::Info(args) => info::run(&args),
        CliCommand::Smart(args) => smart::run(&args),
        CliCommand::List(args) => list::run(&args),
        CliCommand::Ls(args) => ls::run(&args),
        CliCommand::Stat(args) => stat::run(&args),
        CliCommand::Cat(args) => cat::run(&args),
        CliCommand::Find(args) => find::run(&args),
        CliCommand::Tree(args) => tree_print::run(&args),
        CliCommand::Du(args) => du::run(&args),
        CliCommand::Df(args) => df::run(&args),
        CliCommand::Check(args) => check::run(&args),
        CliCommand::Xattr(args) => xattr::run(&args),
        CliCommand::Get(args) => get::run(&args),
        CliCommand::Put(args) => put::run(&args),
        CliCommand::Chmod(args) => chmod::run(&args),
        CliCommand::Chown(args) => chown::run(&args),
        CliCommand::Touch(args) => touch::run(&args),
        CliCommand::Truncate(args) => truncate::run(&args),
        CliCommand::Fallocate(args) => fallocate::run(&args),
        CliCommand::Fiemap(args) => fiemap::run(&args),
        CliCommand::Bench(args) => bench::run(&args),
        CliCommand::Compare(args) => compare::run(&args),
        CliCommand::Serve(args) => serve::run(&args),
        CliCommand::Man(args) => docs::man(&args),
        CliCommand::Completions(args) => docs::completions(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
