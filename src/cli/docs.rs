//! `xtent man` and `xtent completions`.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, LocalPath};

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where to write them: xtent.1, xtent-ls.1, ...; made when missing
    #[arg(value_name = "DIR")]
    dir: LocalPath,
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let failed = |error| Failure::local("cannot write the man pages to", &args.dir, error);
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(failed)?;
    for entry in std::fs::read_dir(&args.dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(page) = name.and_then(|name| name.strip_suffix(".1")) else {
            continue;
        };
        if page.starts_with("xtent") {
            let mut file = std::fs::File::options()
                .append(true)
                .open(&path)
                .map_err(failed)?;
            file.write_all(sections(page).as_bytes()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Examples by page; a page without some of its own has those of `xtent`.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "xtent",
        "xtent info disk.img\nxtent ls -l disk.img /\nxtent get -r disk.img /home out\n\
         xtent bench disk.img /big --rw randread --iodepth 32 --runtime 5 --time-based",
    ),
    (
        "xtent-info",
        "xtent info disk.img\nxtent info --json pci:0000:01:00.0",
    ),
    ("xtent-smart", "xtent smart pci:0000:01:00.0"),
    ("xtent-list", "xtent list"),
    (
        "xtent-ls",
        "xtent ls -l disk.img /\nxtent ls -lthr disk.img,part=2 /var/log",
    ),
    ("xtent-stat", "xtent stat disk.img /etc/hosts"),
    ("xtent-cat", "xtent cat disk.img /etc/hosts"),
    (
        "xtent-find",
        "xtent find disk.img /var/log -name '*.log' -size +1M\n\
         xtent find disk.img / -type f -perm /6000 -print0",
    ),
    ("xtent-tree", "xtent tree -L 2 disk.img /"),
    ("xtent-du", "xtent du -sh disk.img /home"),
    ("xtent-df", "xtent df -h disk.img"),
    (
        "xtent-xattr",
        "xtent xattr -d disk.img /etc/hosts\nxtent xattr --acl disk.img /srv",
    ),
    (
        "xtent-get",
        "xtent get disk.img /etc/hosts .\nxtent get -a -r disk.img / out\n\
         xtent get --tar - disk.img / | tar -x -C out --xattrs --xattrs-include='*' --acls",
    ),
    ("xtent-put", "xtent put local.bin disk.img /data/file"),
    ("xtent-fiemap", "xtent fiemap disk.img /data/file"),
    (
        "xtent-bench",
        "xtent bench disk.img /big --rw randread --bs 4k --iodepth 32 --runtime 5 --time-based",
    ),
    (
        "xtent-compare",
        "xtent compare --image disk.img --report report.html",
    ),
    (
        "xtent-serve",
        "xtent serve vfio-user /run/disk/cntrl --media image:disk.img",
    ),
    ("xtent-man", "xtent man /usr/local/share/man/man1"),
    (
        "xtent-completions",
        "xtent completions bash >/etc/bash_completion.d/xtent",
    ),
];

/// Files that a user meets, with what they are for.
const FILES: &[(&str, &str)] = &[
    (
        "/dev/vfio/N",
        "the IOMMU group of a disk for pci: targets; vfio-setup.sh gives it to a user",
    ),
    (
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        "hugepages of the host, used for DMA memory where there are free ones",
    ),
    (
        "/run/vfio-setup",
        "the notes of vfio-setup.sh, by which vfio-setup.sh reset gives disks back to the kernel",
    ),
];

/// The sections that clap does not make.
fn sections(page: &str) -> String {
    let own = EXAMPLES
        .iter()
        .find(|(name, _)| page.starts_with(name) && *name != "xtent");
    let (_, examples) = own.or(EXAMPLES.first()).copied().unwrap_or_default();
    let mut text = String::from(".SH \"EXIT STATUS\"\n");
    for line in super::EXIT_STATUS.lines().skip(1) {
        if let Some((status, meaning)) = line.trim().split_once("  ") {
            text.push_str(&format!(".TP\n{status}\n{}\n", escaped(meaning)));
        }
    }
    text.push_str(".SH EXAMPLES\n.nf\n");
    for line in examples.lines() {
        text.push_str(&format!("{}\n", escaped(line)));
    }
    text.push_str(".fi\n.SH FILES\n");
    for (path, what) in FILES {
        text.push_str(&format!(".TP\n{}\n{}\n", escaped(path), escaped(what)));
    }
    text
}

/// Text that troff takes as it is.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "xtent", &mut text);
    std::io::stdout().write_all(&text)?;
    Ok(())
}
