//! A decision: the plan of a packet, or the reason for its drop and the answer to its sender.

use std::sync::Arc;

use podswitch_policy::service::entry::ServiceEntry;

use crate::action::{DropReason, Plan};
use crate::id::Cookie;
use crate::nat::select::Served;
use crate::pinned::Pinned;

/// The answer that the sender of a dropped packet gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// None.
    Silent,
    /// ICMP network unreachable.
    NetUnreachable,
    /// ICMP host unreachable.
    HostUnreachable,
    /// ICMP port unreachable; for TCP a reset.
    PortUnreachable,
    /// ICMP administratively prohibited.
    Prohibited,
}

/// Why a packet is not forwarded.
#[derive(Clone, Debug)]
pub struct Denial<'s> {
    /// The reason.
    pub reason: DropReason,
    /// The object that caused the decision: a policy, a Service.
    pub object: Option<Cookie>,
    /// The answer to the sender.
    pub answer: Answer,
    /// The counter of that object. It is incremented for every denied packet: the packet opens no
    /// connection, so each is an attempt of its own.
    pub counter: Option<DenialCounter<'s>>,
}

/// The counter for a denied packet.
#[derive(Clone, Copy, Debug)]
pub enum DenialCounter<'s> {
    /// A policy's counter, by its number in [`policy_counters`](crate::snapshot::Snapshot::policy_counters).
    Policy(u32),
    /// Connections that a Service port rejected (S5).
    ServiceRejected(&'s Arc<ServiceEntry>),
    /// Connections that a Service port dropped (S3, S4, S7).
    ServiceDropped(&'s Arc<ServiceEntry>),
}

impl From<DropReason> for Denial<'_> {
    fn from(reason: DropReason) -> Self {
        Self { reason, object: None, answer: Answer::Silent, counter: None }
    }
}

/// The policy rules that allowed a connection, by their numbers in [`policy_counters`](crate::snapshot::Snapshot::policy_counters).
/// Each counts once for a connection, when the connection is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AllowedBy {
    /// The rule of the source's egress policy; `None` if it was not evaluated here.
    pub egress: Option<u32>,
    /// The rule of the destination's ingress policy; `None` if it was not evaluated here.
    pub ingress: Option<u32>,
}

/// The result for a packet.
#[derive(Clone, Debug)]
pub enum Decision<'s> {
    /// It is forwarded.
    Forward {
        /// The plan for packets of this direction.
        plan: Plan,
        /// The facts of the connection. If the source of a new connection is translated, the
        /// destination port of `reply` is still the client's: a port is leased when the connection
        /// is opened.
        pinned: Pinned,
        /// The Service that selected the backend of a new connection.
        service: Option<Served<'s>>,
        /// The policy rules that allowed it.
        allowed_by: AllowedBy,
    },
    /// It is for the gateway itself.
    Gateway,
    /// It is dropped.
    Drop(Denial<'s>),
}

/// A [`Decision`] whose large parts are written to the caller's memory.
pub enum Verdict<'s> {
    /// Forward.
    Forward(Forward<'s>),
    /// For the gateway itself.
    Gateway,
    /// Drop.
    Drop(Denial<'s>),
}

/// The small parts of [`Decision::Forward`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'s> {
    /// The Service that selected the backend of a new connection.
    pub service: Option<Served<'s>>,
    /// The policy rules that allowed it.
    pub allowed_by: AllowedBy,
}
