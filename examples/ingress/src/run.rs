//! Serves until SIGTERM or SIGINT.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

use podswitch_ingress::proxy::{LogWriter, Proxy};
use podswitch_kubernetes::Record;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flags::Flags;
use crate::metrics;
use crate::source::Source;

/// How often the manifests and signals are looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// Reports what is left out or not honoured.
pub(crate) fn check(flags: &Flags) -> Result<ExitCode, Box<dyn Error>> {
    let mut source = Source::new(&flags.manifests, flags.options());
    let compiled = source.load()?.unwrap_or_default();
    let mut is_refused = !source.errors().is_empty();
    for error in source.errors() {
        println!("{error}");
    }
    for record in &compiled.records {
        println!("{record}");
        is_refused |= record.refused;
    }
    println!("{} Ingresses, {} routes", compiled.served.len(), compiled.routes.all().count());
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
    let mut source = Source::new(&flags.manifests, flags.options());
    // Without objects nothing is served: a folder that cannot be read is an error of the start.
    let compiled = source.load()?;
    let log = flags.log.as_deref().map(open).transpose()?.map(LogWriter::start).transpose()?;
    let proxy = Proxy::start(options, log)?;
    let mut reports = Reports::default();
    if let Some(compiled) = compiled {
        let records = proxy.publish(compiled.routes);
        reports.report(source.errors(), compiled.records.iter().chain(&records));
    }
    for (name, address) in [("HTTP", proxy.http()), ("HTTPS", proxy.https())] {
        if let Some(address) = address {
            eprintln!("{name} at {address}");
        }
    }
    if let Some(address) = flags.metrics {
        let address = metrics::serve(address, proxy.metrics())?;
        eprintln!("metrics at {address}");
    }
    eprintln!("ready");
    while !stop.load(Relaxed) {
        sleep(INTERVAL);
        match source.load() {
            Ok(None) => {}
            Ok(Some(compiled)) => {
                let records = proxy.publish(compiled.routes);
                reports.report(source.errors(), compiled.records.iter().chain(&records));
            }
            Err(error) => reports.report(&[error.to_string()], []),
        }
    }
    proxy.stop(Duration::from_secs(flags.drain));
    Ok(ExitCode::SUCCESS)
}

/// What was reported: everything is reported once.
#[derive(Default)]
struct Reports(Vec<String>);

impl Reports {
    fn report<'r>(&mut self, errors: &[String], records: impl IntoIterator<Item = &'r Record>) {
        let now: Vec<String> =
            errors.iter().cloned().chain(records.into_iter().map(Record::to_string)).collect();
        for line in now.iter().filter(|line| !self.0.contains(line)) {
            eprintln!("warning: {line}");
        }
        self.0 = now;
    }
}

fn open(path: &Path) -> io::Result<Box<dyn Write + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    Ok(Box::new(OpenOptions::new().create(true).append(true).open(path)?))
}
