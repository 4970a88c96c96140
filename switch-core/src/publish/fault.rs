//! Errors of objects: every [`ConfigError`] is made here, from what [`validate`](super::validate)
//! and [`objects`](super::objects) find.

use podswitch_policy::service::compile::Clash;
use podswitch_policy::service::table::FrontendKind;

use super::left_out::{Cause, Effect, LeftOut};
use crate::config::ConfigError;
use crate::id::Cookie;

/// One error of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) field: String,
    pub(crate) reason: String,
    pub(crate) cause: Cause,
}

/// All errors of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults(pub(crate) Vec<Fault>);

impl Faults {
    pub(crate) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.push(field, reason, Cause::Invalid);
    }

    pub(crate) fn missing(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.push(field, reason, Cause::Missing);
    }

    /// Another object already has what this one claims.
    pub(crate) fn conflict(&mut self, field: String, what: &str, holder: &Cookie) {
        let cause = Cause::Conflict { holder: holder.clone() };
        self.push(field, format!("{what} is {holder}'s already"), cause);
    }

    fn push(&mut self, field: impl Into<String>, reason: impl Into<String>, cause: Cause) {
        self.0.push(Fault { field: field.into(), reason: reason.into(), cause });
    }

    /// As errors of `object`.
    pub(crate) fn into_errors(self, object: &Cookie) -> Vec<ConfigError> {
        self.0.into_iter().map(|fault| fault.error(object)).collect()
    }
}

impl Fault {
    fn error(&self, object: &Cookie) -> ConfigError {
        error(object, &self.field, self.reason.clone())
    }

    pub(super) fn left_out(&self, object: &Cookie, effect: Effect) -> LeftOut {
        LeftOut { error: self.error(object), cause: self.cause.clone(), effect }
    }
}

fn error(object: &Cookie, field: &str, reason: String) -> ConfigError {
    ConfigError { object: object.clone(), field: field.into(), reason }
}

/// Another object of its kind has the name of `object`; `what` is the field and the reason.
pub(super) fn same_name(object: &Cookie, (field, reason): (&str, &str)) -> ConfigError {
    error(object, field, reason.into())
}

/// As [`same_name`], for an object that is left out.
pub(super) fn duplicate(object: &Cookie, what: (&str, &str)) -> LeftOut {
    LeftOut { error: same_name(object, what), cause: Cause::Duplicate, effect: Effect::Absent }
}

/// Another object already has a frontend.
pub(super) fn clash(clash: &Clash) -> LeftOut {
    let field = match clash.kind {
        FrontendKind::ClusterIp => "spec.clusterIPs",
        FrontendKind::LoadBalancer => "status.loadBalancer.ingress",
        FrontendKind::ExternalIp => "spec.externalIPs",
        FrontendKind::NodePort => "spec.ports.nodePort",
        FrontendKind::HostPort => "host_ports",
    };
    let (kind, port, winner) = (clash.kind.name(), clash.port, &clash.winner);
    let reason = match clash.address {
        Some(address) => format!("{kind} {address}: port {port} is {winner}'s already"),
        None => format!("{kind} of port {port} is {winner}'s already"),
    };
    LeftOut {
        error: ConfigError {
            object: Cookie::new(clash.loser.clone()),
            field: field.into(),
            reason,
        },
        cause: Cause::Conflict { holder: Cookie::new(winner.clone()) },
        effect: Effect::OneFrontend,
    }
}
