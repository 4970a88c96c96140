//! Serves until SIGTERM or SIGINT.

use std::collections::HashSet;
use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use podswitch_ingress::proxy::{LogWriter, Proxy};
use podswitch_kubernetes::Record;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flags::Flags;
use crate::source::Source;
use crate::{metrics, say};

/// How often the manifests and signals are looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// Reports what is left out or not honoured.
pub(crate) fn check(flags: &Flags) -> Result<ExitCode, Box<dyn Error>> {
    let mut source = Source::open(flags)?;
    if !source.is_complete_at_once() {
        return Err("--check needs --manifests".into());
    }
    let compiled = source.load(Duration::ZERO)?.unwrap_or_default();
    let errors = source.errors();
    let mut is_refused = !errors.is_empty();
    for error in errors {
        say::result(error);
    }
    for record in &compiled.records {
        say::result(record);
        is_refused |= record.refused;
    }
    let (served, routes) = (compiled.served.len(), compiled.routes.all().count());
    let http_routes = compiled.status.routes.len();
    say::result(format_args!("{served} Ingresses, {http_routes} HTTPRoutes, {routes} routes"));
    Ok(if is_refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Serves.
pub(crate) fn run(flags: &Flags) -> Result<ExitCode, Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let options = flags.proxy();
    if options.http.is_none() && options.https.is_none() {
        return Err("neither --http nor --https is given: nothing would listen".into());
    }
    let mut source = Source::open(flags)?;
    let mut reports = Reports::default();
    // Nothing listens before the objects are known: requests would be answered with status 404.
    let first = loop {
        let first =
            source.load(if source.is_complete_at_once() { Duration::ZERO } else { INTERVAL })?;
        if first.is_some() || source.is_complete_at_once() {
            break first;
        }
        if stop.load(Relaxed) {
            return Ok(ExitCode::SUCCESS);
        }
        reports.errors(source.errors());
    };
    reports.errors(source.errors());
    let log = flags.log.as_deref().map(open).transpose()?.map(LogWriter::start).transpose()?;
    let proxy = Proxy::start(options, log)?;
    if let Some(compiled) = first {
        let records = proxy.publish(compiled.routes);
        reports.records(compiled.records.iter().chain(&records));
    }
    for (name, address) in [("HTTP", proxy.http()), ("HTTPS", proxy.https())] {
        if let Some(address) = address {
            say::note(format_args!("{name} at {address}"));
        }
    }
    if let Some(address) = flags.metrics {
        let address = metrics::serve(address, proxy.metrics())?;
        say::note(format_args!("metrics at {address}"));
    }
    say::note("ready");
    while !stop.load(Relaxed) {
        let loaded = source.load(INTERVAL);
        let mut errors = source.errors();
        match loaded {
            Ok(None) => {}
            Ok(Some(compiled)) => {
                let records = proxy.publish(compiled.routes);
                reports.records(compiled.records.iter().chain(&records));
            }
            Err(error) => errors.push(error.to_string()),
        }
        reports.errors(errors);
    }
    proxy.stop(Duration::from_secs(flags.drain));
    Ok(ExitCode::SUCCESS)
}

/// What was reported: everything is reported once, as long as it lasts.
#[derive(Default)]
struct Reports {
    errors: HashSet<String>,
    records: HashSet<String>,
}

impl Reports {
    fn errors(&mut self, now: Vec<String>) {
        report(&mut self.errors, now);
    }

    fn records<'r>(&mut self, now: impl Iterator<Item = &'r Record>) {
        report(&mut self.records, now.map(Record::to_string).collect());
    }
}

fn report(before: &mut HashSet<String>, now: Vec<String>) {
    for line in now.iter().filter(|line| !before.contains(*line)) {
        say::note(format_args!("warning: {line}"));
    }
    *before = now.into_iter().collect();
}

fn open(path: &Path) -> io::Result<Box<dyn Write + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    Ok(Box::new(OpenOptions::new().create(true).append(true).open(path)?))
}
