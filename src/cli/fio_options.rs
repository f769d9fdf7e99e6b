//! Options of fio that `xtent bench` does not have: an error that says so.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::failure::{Failure, USAGE};

/// fio's options (`fio --cmdhelp`, fio 3.33) and those of its command line, with - between words.
const OPTIONS: &str = "\
    description wait-for filename lockfile directory filename-format unique-filename opendir bsrange ba blockalign \
    bssplit bs-unaligned blocksize-range blocksize-unaligned randrepeat norandommap ignore-error rw-sequencer ioengine \
    iodepth-batch iodepth-batch-submit iodepth-batch-complete iodepth-batch-complete-min iodepth-batch-complete-max \
    iodepth-low serialize-overlap io-submit-mode io-size io-limit fill-device fill-fs filesize \
    offset-increment offset-align random-generator random-distribution percentage-random allrandrepeat nrfiles \
    file-service-type openfiles fadvise-hint fadvise write-barrier sync-file-range atomic overwrite loops \
    startdelay verify-only clocksource mem iomem do-verify verify-interval verify-offset verify-pattern verify-fatal \
    verify-dump verify-async verify-async-cpus verify-backlog verify-backlog-batch experimental-verify verify-state-load \
    verify-state-save trim-percentage trim-verify-zero trim-backlog trim-backlog-batch write-iolog read-iolog \
    read-iolog-chunked replay-no-stall replay-redirect replay-scale replay-align replay-time-scale replay-skip \
    merge-blktrace-file merge-blktrace-scalars merge-blktrace-iters exec-prerun exec-postrun ioscheduler zonemode \
    zonesize zonecapacity zonerange zoneskip read-beyond-wp max-open-zones job-max-open-zones ignore-zone-limits \
    zone-reset-threshold zone-reset-frequency lockmem nice prio prioclass thinktime thinktime-spin thinktime-blocks \
    thinktime-blocks-type thinktime-iotime rate rate-min rate-process rate-cycle rate-ignore-thinktime rate-iops \
    rate-iops-min max-latency latency-target latency-window latency-percentile latency-run invalidate write-hint \
    create-serialize create-fsync create-on-open create-only allow-file-create allow-mounted-write pre-read cpumask \
    cpus-allowed-policy numa-cpu-nodes numa-mem-policy end-fsync fsync-on-close unlink unlink-each-loop exitall exit-what \
    exitall-on-error stonewall wait-for-previous new-group thread per-job-logs write-bw-log bwavgtime write-lat-log \
    write-iops-log iopsavgtime log-entries log-avg-msec log-hist-coarseness log-max-value log-offset log-prio \
    log-compression log-compression-cpus log-store-compressed log-unix-epoch log-alternate-epoch \
    log-alternate-epoch-clock-id block-error-percentiles stats zero-buffers refill-buffers scramble-buffers \
    buffer-pattern buffer-compress-percentage buffer-compress-chunk dedupe-percentage dedupe-mode \
    dedupe-working-set-percentage dedupe-global clat-percentiles significant-figures disk-util gtod-reduce disable-lat \
    disable-clat disable-slat disable-bw-measurement disable-bw gtod-cpu unified-rw-reporting continue-on-error \
    error-dump profile cgroup cgroup-nodelete cgroup-weight uid gid kb-base unit-base hugepage-size flow-id flow \
    flow-watermark flow-sleep steadystate steadystate-duration steadystate-ramp-time \
    bandwidth-log minimal terse-version append-terse cmdhelp enghelp crctest cpuclock-test debug parse-only eta \
    eta-newline eta-interval section showcmd status-interval alloc-size warnings-fatal max-jobs server daemonize client \
    remote-config idle-prof inflate-log trigger-file trigger trigger-timeout trigger-remote aux-path trim";

/// `None` where it is no option of fio, or one that `xtent bench` has too.
fn rejection(option: &str) -> Option<String> {
    let name = option.trim_start_matches('-');
    let name = name.split('=').next().unwrap_or(name).replace('_', "-");
    if !OPTIONS.split_ascii_whitespace().any(|known| known == name) {
        return None;
    }
    let instead = match name.as_str() {
        "filename" | "directory" => "name the target and the file: xtent bench TARGET PATH",
        "ioengine" => "leave it out: the target chooses the engine (image:, pci:, uring:, ...)",
        "do-verify" | "verify-pattern" => "give --verify alone",
        "thread" | "randrepeat" | "invalidate" | "clat-percentiles" => {
            "leave it out: it is what `xtent bench` always does"
        }
        _ => "leave it out, or run fio itself for it",
    };
    Some(format!(
        "{option} is an option of fio that `xtent bench` does not have: {instead} (see `xtent bench --help` for the \
         differences)"
    ))
}

/// Ends the process with clap's error; what it says of an option or a job file of fio is replaced.
pub(super) fn explain(error: &clap::Error) -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "bench") {
        if error.kind() == ErrorKind::UnknownArgument
            && let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg)
            && let Some(text) = rejection(option)
        {
            return Failure::new(USAGE, text).report();
        }
        let is_file = |word: &OsString| reject_job_file(word).err();
        if let Some(failure) = words.find_map(|word| is_file(&word)) {
            return failure.report();
        }
    }
    error.exit()
}

/// A job file in the place of the target.
pub(super) fn reject_job_file(target: &OsStr) -> Result<(), Failure> {
    let name = Path::new(target);
    let extension = name.extension().and_then(OsStr::to_str);
    if !matches!(extension, Some("fio" | "job" | "ini")) || !name.is_file() {
        return Ok(());
    }
    Err(Failure::new(
        USAGE,
        format!(
            "{}: `xtent bench` reads no job files of fio: give the options of one job, or run fio itself",
            name.display()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_fio_are_rejected_and_those_of_bench_are_not() {
        for option in [
            "--rate",
            "--rate=1m",
            "--rate_iops",
            "--random_distribution",
            "--bssplit",
        ] {
            let text = rejection(option).unwrap();
            assert!(
                text.contains(option) && text.contains("run fio itself"),
                "{text}"
            );
        }
        assert!(rejection("--filename").unwrap().contains("TARGET PATH"));
        assert!(rejection("--frobnicate").is_none());
        let command = <super::super::Cli as clap::CommandFactory>::command();
        let bench = command.find_subcommand("bench").unwrap();
        for argument in bench.get_arguments() {
            let names = argument.get_long_and_visible_aliases().unwrap_or_default();
            let hidden = argument.get_all_aliases().unwrap_or_default();
            for name in names.into_iter().chain(hidden) {
                assert!(rejection(name).is_none(), "{name}");
            }
        }
    }

    #[test]
    fn job_files_are_rejected() {
        let file = tempfile::Builder::new().suffix(".fio").tempfile().unwrap();
        let name = file.path().to_str().unwrap();
        let failure = reject_job_file(OsStr::new(name)).unwrap_err();
        assert!(failure.text().unwrap().contains("job files"));
        reject_job_file(OsStr::new("no-such.fio")).unwrap();
        reject_job_file(OsStr::new("disk.img")).unwrap();
    }
}
