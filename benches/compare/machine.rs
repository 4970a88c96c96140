//! The properties of this machine that decide ratios. The same command gave 0.96 and 0.72 for one ratio on two machines.

use std::fs;
use std::thread;

/// A property and its value, for people.
pub(crate) type Fact = (&'static str, String);

/// The facts that this system reports.
pub(crate) fn facts() -> Vec<Fact> {
    let facts = [
        ("processor", processor()),
        ("processors", Some(processors().to_string())),
        ("caches", caches()),
        ("hypervisor", Some(if flags().any(|f| f == "hypervisor") { "yes" } else { "no" }.into())),
        ("kernel", Some(kernel())),
        ("preemption", preemption()),
        ("clock", read("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        ("frequency governor", read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        ("mitigations", mitigations()),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// The running kernel's release.
pub(crate) fn kernel() -> String {
    read("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// The number of usable processors.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(0, usize::from)
}

/// A file's text without the white space around it.
fn read(file: &str) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

/// The first value of a field of `/proc/cpuinfo`.
fn of_processor(field: &str) -> Option<String> {
    let text = read("/proc/cpuinfo")?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.trim() == field).map(|(_, value)| value.trim().to_owned())
}

fn processor() -> Option<String> {
    let name = of_processor("model name")?;
    Some(match of_processor("cpu MHz").and_then(|mhz| mhz.parse::<f64>().ok()) {
        Some(mhz) => format!("{name}, {:.1} GHz", mhz / 1e3),
        None => name,
    })
}

fn flags() -> impl Iterator<Item = String> {
    let flags = of_processor("flags").unwrap_or_default();
    flags.split_whitespace().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// Level, type and size of each cache of the first processor.
fn caches() -> Option<String> {
    let cache = |number: usize| {
        let of = |what| read(&format!("/sys/devices/system/cpu/cpu0/cache/index{number}/{what}"));
        let kind = match of("type")?.as_str() {
            "Data" => "d",
            "Instruction" => "i",
            _ => "",
        };
        Some(format!("L{}{kind} {}", of("level")?, of("size")?))
    };
    let all: Vec<String> = (0..8).map_while(cache).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// The kernel's model of preemption: the chosen one is in brackets; otherwise what the kernel was built with.
fn preemption() -> Option<String> {
    if let Some(modes) = read("/sys/kernel/debug/sched/preempt") {
        let chosen = modes.split('(').nth(1)?.split(')').next()?;
        return Some(chosen.to_owned());
    }
    let version = read("/proc/sys/kernel/version")?;
    version.split_whitespace().find(|word| word.starts_with("PREEMPT")).map(str::to_owned)
}

/// The mitigations that are in force.
fn mitigations() -> Option<String> {
    let mut all: Vec<String> = fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let state = fs::read_to_string(entry.path()).ok()?;
            let measure = state.trim().strip_prefix("Mitigation: ")?.to_owned();
            Some(format!("{} ({measure})", entry.file_name().to_string_lossy()))
        })
        .collect();
    all.sort();
    Some(if all.is_empty() { "none".to_owned() } else { all.join("; ") })
}
