//! Which events are logged: a level for each target, set as directives such as `info,cni=debug`.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use podswitch_kubernetes::nearest;

/// The targets of events. Libraries have targets of their own; the last entry sets their level.
pub(crate) const TARGETS: [&str; 8] =
    ["run", "state", "node", "dns", "cni", "kubernetes", "log", LIBRARIES];
/// Directive for events of libraries.
const LIBRARIES: &str = "libraries";

/// Log levels. Higher ones include lower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Verbosity {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    /// Only libraries log at this level.
    Trace,
}

impl Verbosity {
    /// The levels that a directive can name.
    const ALL: [Self; 5] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(text))
    }
}

impl From<tracing::Level> for Verbosity {
    fn from(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

/// A level for all targets, and levels for single ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directives {
    all: Verbosity,
    single: [Option<Verbosity>; TARGETS.len()],
}

impl Default for Directives {
    fn default() -> Self {
        Self { all: Verbosity::Info, single: [None; TARGETS.len()] }
    }
}

impl Directives {
    fn level(&self, target: usize) -> Verbosity {
        self.single[target].unwrap_or(match TARGETS[target] {
            // Their info and debug events are only useful to their authors.
            LIBRARIES => self.all.min(Verbosity::Warn),
            _ => self.all,
        })
    }
}

impl FromStr for Directives {
    type Err = String;

    /// Directives are separated by commas: `LEVEL` for all targets, at most one, and `TARGET=LEVEL`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut directives = Self::default();
        let mut all = None;
        for part in text.split(',').map(str::trim) {
            let (target, level) = match part.split_once('=') {
                Some((target, level)) => (Some(target.trim()), level.trim()),
                None => (None, part),
            };
            let Some(level) = Verbosity::find(level) else {
                let names = Verbosity::ALL.map(Verbosity::name).join(", ");
                return Err(format!("{level:?} is not a level; the levels are {names}"));
            };
            let is_first = match target {
                None => all.replace(level).is_none(),
                Some(target) => directives.single[index_of(target)?].replace(level).is_none(),
            };
            if !is_first {
                return Err(format!("{part:?}: a level is given twice"));
            }
        }
        directives.all = all.unwrap_or(directives.all);
        Ok(directives)
    }
}

/// Index of a target.
fn index_of(target: &str) -> Result<usize, String> {
    TARGETS.iter().position(|known| *known == target).ok_or_else(|| {
        let meant = nearest(target, &TARGETS, 2).map(|name| format!("; did you mean {name}?"));
        let names = TARGETS.join(", ");
        format!("{target:?} is not a target; the targets are {names}{}", meant.unwrap_or_default())
    })
}

impl fmt::Display for Directives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.all.name())?;
        for (target, level) in TARGETS.iter().zip(self.single) {
            if let Some(level) = level {
                write!(f, ",{target}={}", level.name())?;
            }
        }
        Ok(())
    }
}

/// The directives in force, read by each event without a lock.
#[derive(Debug)]
pub(crate) struct Filter {
    all: AtomicU8,
    /// Levels by target; `UNSET`: the level for all targets.
    single: [AtomicU8; TARGETS.len()],
}

const UNSET: u8 = u8::MAX;

impl Filter {
    pub(crate) fn new(directives: &Directives) -> Self {
        let filter =
            Self { all: AtomicU8::new(0), single: [const { AtomicU8::new(UNSET) }; TARGETS.len()] };
        filter.set(directives);
        filter
    }

    /// Replaces the directives in force.
    pub(crate) fn set(&self, directives: &Directives) {
        self.all.store(directives.all as u8, Relaxed);
        for (level, new) in self.single.iter().zip(directives.single) {
            level.store(new.map_or(UNSET, |level| level as u8), Relaxed);
        }
    }

    /// The directives in force.
    pub(crate) fn directives(&self) -> Directives {
        let read = |level: &AtomicU8| {
            let level = level.load(Relaxed);
            Verbosity::ALL.into_iter().find(|known| *known as u8 == level)
        };
        let mut directives =
            Directives { all: read(&self.all).unwrap_or(Verbosity::Info), ..Directives::default() };
        for (level, of) in directives.single.iter_mut().zip(&self.single) {
            *level = read(of);
        }
        directives
    }

    /// Whether events of this target and level are logged.
    pub(crate) fn allows(&self, target: &str, level: Verbosity) -> bool {
        let place = TARGETS.iter().position(|known| *known == target);
        level <= self.directives().level(place.unwrap_or(TARGETS.len() - 1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::new(&text.parse().unwrap())
    }

    #[test]
    fn directives_are_parsed_and_formatted() {
        for (text, written) in [
            ("debug", "debug"),
            ("cni=debug", "info,cni=debug"),
            ("cni=debug, WARN ,state=off", "warn,state=off,cni=debug"),
        ] {
            let directives: Directives = text.parse().unwrap();
            assert_eq!(directives.to_string(), written);
            assert_eq!(Filter::new(&directives).directives(), directives);
        }
    }

    #[test]
    fn errors_list_valid_levels_and_targets() {
        for (text, says) in [
            ("loud", "\"loud\" is not a level; the levels are off, error, warn, info, debug"),
            ("", "\"\" is not a level"),
            ("info,", "\"\" is not a level"),
            ("info,cni=", "\"\" is not a level"),
            (
                "info,cnj=debug",
                "\"cnj\" is not a target; the targets are run, state, node, dns, cni, kubernetes, log, libraries; did you mean cni?",
            ),
            ("info,warn", "\"warn\": a level is given twice"),
            ("cni=info,cni=warn", "\"cni=warn\": a level is given twice"),
        ] {
            let error = text.parse::<Directives>().unwrap_err();
            assert!(error.starts_with(says), "{text}: {error}");
        }
    }

    /// The text of all files of Rust below a folder.
    fn sources(folder: &Path) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                all += &sources(&path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                all += &std::fs::read_to_string(path).unwrap();
            }
        }
        all
    }

    #[test]
    fn events_have_a_target_of_the_list() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = ["log", "run", "inspect", "../../switch-core"];
        let all = folders.map(|folder| sources(&package.join(folder))).concat();
        let front = concat!("target", ": \"");
        let used = all.split(front).skip(1).filter_map(|rest| rest.split('"').next());
        let used: BTreeSet<&str> = used.collect();
        let known = TARGETS.into_iter().filter(|it| *it != LIBRARIES).collect();
        assert_eq!(used, known, "others count as those of libraries");
    }

    #[test]
    fn a_directive_applies_to_its_target() {
        let filter = filter("warn,cni=debug,run=off");
        assert!(filter.allows("cni", Verbosity::Debug));
        assert!(filter.allows("state", Verbosity::Warn));
        assert!(!filter.allows("state", Verbosity::Info));
        assert!(!filter.allows("run", Verbosity::Error));
        filter.set(&"debug".parse().unwrap());
        assert!(filter.allows("run", Verbosity::Debug));
        assert!(filter.allows("hyper::proto", Verbosity::Warn));
        assert!(
            !filter.allows("hyper::proto", Verbosity::Info),
            "only warnings and errors of libraries"
        );
        filter.set(&"info,libraries=debug".parse().unwrap());
        assert!(filter.allows("hyper::proto", Verbosity::Debug));
        assert!(!filter.allows("hyper::proto", Verbosity::Trace));
    }
}
