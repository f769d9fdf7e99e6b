//! The machine and the build that a measurement ran on.

use serde::Serialize;

/// The machine and the build.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Environment {
    pub(crate) xtent: String,
    pub(crate) compiler: String,
    pub(crate) profile: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) virtual_machine: bool,
    /// Over one minute, when the bench began.
    pub(crate) load_average: f64,
    pub(crate) governor: Option<String>,
    pub(crate) kernel: String,
    pub(crate) host: String,
    /// As it was given, each word on its own.
    pub(crate) command_line: Vec<String>,
    pub(crate) memory_bytes: u64,
    pub(crate) hugepages_2m_total: u64,
    pub(crate) hugepages_2m_free: u64,
    /// Seconds since 1970.
    pub(crate) timestamp: u64,
}

/// Version and commit, for `--version` and reports.
pub(crate) const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("XTENT_COMMIT"), ")");

fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn number(path: &str) -> u64 {
    read(path).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find(|line| line.starts_with(name))
        .and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim())
}

impl Environment {
    pub(crate) fn gather() -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let meminfo = read("/proc/meminfo").unwrap_or_default();
        let kib = field(&meminfo, "MemTotal")
            .and_then(|value| value.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let huge = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let flags = field(&cpuinfo, "flags").unwrap_or_default();
        Self {
            xtent: VERSION.into(),
            compiler: env!("XTENT_RUSTC").into(),
            profile: env!("XTENT_PROFILE").into(),
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").into(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            virtual_machine: flags.split(' ').any(|flag| flag == "hypervisor"),
            load_average: read("/proc/loadavg")
                .and_then(|text| text.split(' ').next()?.parse().ok())
                .unwrap_or(0.0),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
            host: read("/proc/sys/kernel/hostname").unwrap_or_else(|| "unknown".into()),
            command_line: std::env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            memory_bytes: kib * 1024,
            hugepages_2m_total: number(&format!("{huge}/nr_hugepages")),
            hugepages_2m_free: number(&format!("{huge}/free_hugepages")),
            timestamp: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
        }
    }

    /// A warning, where the build makes the figures worthless. Load by other programs is measured
    /// during a run (see [`super::usage::CpusInUse::warning`]): the load average has past runs in
    /// it.
    pub(crate) fn warning(&self) -> Option<String> {
        (self.profile != "release").then(|| {
            format!(
                "this is a {} build: figures mean nothing (build with --release)",
                self.profile
            )
        })
    }

    /// The command line for a shell.
    pub(crate) fn command_text(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
        let words = self.command_line.iter().map(|word| {
            if !word.is_empty() && word.chars().all(plain) {
                word.clone()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_can_be_given_to_a_shell() {
        let mut environment = Environment::gather();
        environment.command_line = ["xtent", "bench", "spdk:a b", "it's"]
            .map(String::from)
            .into();
        assert_eq!(
            environment.command_text(),
            r"xtent bench 'spdk:a b' 'it'\''s'"
        );
        assert!(!environment.host.is_empty());
    }
}
