//! Log events of a running switch.

use std::collections::HashSet;
use std::fmt::Display;
use std::time::Duration;

use podswitch_core::config::ConfigError;
use podswitch_core::control::Effect;
use podswitch_kubernetes::{Action, Record};
use podswitch_node::cni::{AnsweredCall, CniError, CniEvent};
use podswitch_node::{Event, Failure};

use crate::failure::{Named, present};
use crate::log;

/// Logs the start.
pub(super) fn start(workers: usize) {
    let arguments = shown(std::env::args().skip(1));
    let (version, log_level) = (env!("CARGO_PKG_VERSION"), log::directives());
    tracing::info!(
        target: "run", version, workers, log_level, arguments, pid = std::process::id(), "start"
    );
}

/// Arguments as one text, without secrets.
fn shown(arguments: impl Iterator<Item = String>) -> String {
    let (mut text, mut is_secret) = (String::new(), false);
    for argument in arguments {
        let argument = match (is_secret, argument.split_once("://")) {
            (true, _) => HIDDEN.to_owned(),
            _ if argument.starts_with(&format!("{SECRET}=")) => format!("{SECRET}={HIDDEN}"),
            // User and password of a URL.
            (false, Some((scheme, rest))) => {
                let end = rest.find('/').unwrap_or(rest.len());
                match rest[..end].rfind('@') {
                    Some(at) => format!("{scheme}://{HIDDEN}{}", &rest[at..]),
                    None => argument,
                }
            }
            (false, None) => argument,
        };
        is_secret = argument == SECRET;
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&argument);
    }
    text
}

/// The flag with a secret value: anyone who knows it can choose connections that all go to one
/// backend.
const SECRET: &str = "--hash-key";
const HIDDEN: &str = "...";

/// Logs the stop, requested or caused by a failure of the node.
pub(super) fn stop(
    is_failed: bool,
    is_handed_over: bool,
    uptime: Duration,
    keeps_interfaces: bool,
) {
    let reason = match (is_failed, is_handed_over) {
        (_, true) => "handed over",
        (true, false) => "the node failed",
        (false, false) => "SIGTERM or SIGINT",
    };
    let uptime_s = uptime.as_secs();
    tracing::info!(target: "run", reason, uptime_s, keeps_interfaces, "stop");
}

/// Logs an event of the node. Drops and connections have records of their own.
pub(super) fn node(event: Event) {
    match event {
        Event::Applied { epoch } => {
            tracing::debug!(target: "node", epoch = epoch.0, "a state is in force at every worker");
        }
        Event::Refused(errors) => errors.iter().for_each(refused),
        Event::LeftOut(left_out) => {
            let effect = match left_out.effect {
                Effect::LastVersion => Action::KeptLastGood.to_string(),
                Effect::Isolated => Action::Closed.to_string(),
                Effect::OneFrontend => "it does not have this address and port".to_owned(),
                _ => Action::LeftOut.to_string(),
            };
            let ConfigError { object, field, reason } = &left_out.error;
            let Named { kind, namespace, name } = Named::of(object.as_str());
            let field = present(field);
            tracing::warn!(target: "state", kind, namespace, name, field, reason, "{object}: {effect}");
        }
        Event::Taken { object } => {
            let Named { kind, namespace, name } = Named::of(object.as_str());
            tracing::info!(target: "state", kind, namespace, name, "{object} is in force as written");
        }
        Event::PodAttached { pod, port } => {
            tracing::info!(target: "node", %pod, port = port.0, "pod attached");
        }
        Event::PodDetached { pod } => tracing::info!(target: "node", %pod, "pod detached"),
        Event::Repaired { object, done } => {
            let done = done.join(", ");
            tracing::warn!(target: "node", object, done, "removed or changed settings were restored");
        }
        Event::Held => tracing::info!(target: "node", "{event}"),
        Event::BesideKubeProxy { ref found } => {
            tracing::warn!(target: "node", found, "{event}");
        }
        Event::Failure(failure) => node_failure(&failure),
        Event::Lost { count } => {
            tracing::warn!(target: "log", events = count, "events of the node were lost")
        }
        _ => {}
    }
}

/// A state, new or in force, is not valid with the present interfaces.
fn refused(error: &ConfigError) {
    let ConfigError { object, field, reason } = error;
    let Named { kind, namespace, name } = Named::of(object.as_str());
    tracing::error!(
        target: "state", kind, namespace, name, field = present(field), reason,
        "the state is refused for {object} with the node's present interfaces"
    );
}

fn node_failure(failure: &Failure) {
    let warn = |pod: Option<&dyn Display>, reason: &dyn Display| {
        let pod = pod.map(tracing::field::display);
        tracing::warn!(target: "node", pod, "{reason}");
    };
    match failure {
        Failure::Underlay(error) => {
            warn(None, &format_args!("other nodes are not reached: --{error}"))
        }
        Failure::NodeRoutes(cause) => warn(None, &format_args!("--routing host-gw: {cause}")),
        Failure::UplinkFilter { .. } => warn(None, &format_args!("--{failure}")),
        Failure::PodNotAttached { pod, .. }
        | Failure::PodInterfaceLost { pod, .. }
        | Failure::PodInterfaceStays { pod, .. }
        | Failure::PodMtu { pod, .. } => warn(Some(pod), failure),
        failure => warn(None, failure),
    }
}

/// Logs an event of the CNI agent.
pub(super) fn cni(event: CniEvent) {
    match event {
        CniEvent::Attached { pod, addresses } => {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let addresses = addresses.join(",");
            tracing::debug!(target: "cni", %pod, addresses, "pod attached");
        }
        CniEvent::Released { key } => {
            tracing::debug!(target: "cni", %key, "attachment released")
        }
        CniEvent::Answered(answered) => call(&answered),
        CniEvent::Failed { verb, key, error } => {
            tracing::warn!(target: "cni", verb, key, reason = %error, "failed and will be retried");
        }
        CniEvent::Note(text) => tracing::info!(target: "cni", "{text}"),
        _ => {}
    }
}

fn call(call: &AnsweredCall) {
    let AnsweredCall { verb, container, interface, .. } = call;
    let (pod, duration_ms) = (present(&call.pod), log::milliseconds(call.duration));
    match &call.error {
        Some(CniError { code, message, details, .. }) => tracing::warn!(
            target: "cni", verb, container, interface, pod, duration_ms, outcome = "error", code,
            reason = message, details = present(details), "call failed"
        ),
        None if matches!(&**verb, "ADD" | "DEL") => tracing::info!(
            target: "cni", verb, container, interface, pod, duration_ms, outcome = "done", "call completed"
        ),
        // Runtimes send these verbs all the time.
        None => tracing::debug!(
            target: "cni", verb, container, interface, pod, duration_ms, outcome = "done", "call completed"
        ),
    }
}

/// Logs a record about an object of the state.
fn record(record: &Record) {
    let Named { kind, namespace, name } = Named::of(record.object.as_str());
    let (field, reason) = (present(&record.field), &record.reason);
    let file = record.origin.as_ref().map(ToString::to_string);
    let action = present(record.action.name());
    let object = match record.object.as_str() {
        "" => "the manifests",
        object => object,
    };
    let effect = match (record.action, record.refused) {
        (Action::None, true) => "a warning".to_owned(),
        (Action::None, false) => "a note".to_owned(),
        (action, _) => action.to_string(),
    };
    if record.refused {
        tracing::warn!(target: "state", kind, namespace, name, field, reason, action, file, "{object}: {effect}");
    } else {
        tracing::info!(target: "state", kind, namespace, name, field, reason, action, file, "{object}: {effect}");
    }
}

/// Records that have been logged, to log each only once.
#[derive(Default)]
pub(super) struct Logged(HashSet<String>);

impl Logged {
    /// Logs the records that the previous state did not have.
    pub(super) fn log_new(&mut self, records: &[Record]) {
        records
            .iter() // The node reports what it left out as an event, and that is logged.
            .filter(|record| !record.by_switch && !self.0.contains(&record.to_string()))
            .for_each(record);
        self.0 = records.iter().map(ToString::to_string).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn secrets_are_not_logged() {
        let arguments = "run --hash-key 00ff --hash-key=00ff --output elasticsearch=https://u:p@h:9200/i@x --api-server https://h/a@b";
        assert_eq!(
            shown(arguments.split(' ').map(str::to_owned)),
            "run --hash-key ... --hash-key=... --output elasticsearch=https://...@h:9200/i@x --api-server https://h/a@b"
        );
    }
}
