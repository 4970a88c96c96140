//! Our side: the switches of the `hit` bench, between memory ports.

use std::time::Duration;

use podswitch_core::packet::BATCH;

use crate::usage::thread_time;
use podswitch_benches::full::{self, Case};
use podswitch_benches::rig::{Rig, routed, scattered, udp};

/// Kinds of flows that a switch knows. All are datagrams.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    /// From pod to pod of one node.
    Routed {
        /// Over IPv6.
        v6: bool,
    },
    /// To 200 Services. `full`: with policies, and through the tunnel.
    Service {
        /// With policies, and through the tunnel.
        full: bool,
        /// Over IPv6.
        v6: bool,
    },
}

impl Known {
    /// The name in the `hit` bench.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Routed { v6: false } => "hit/l3",
            Self::Routed { v6: true } => "hit/l3_ipv6",
            Self::Service { full: false, v6: false } => "hit/service_nat",
            Self::Service { full: false, v6: true } => "hit/service_nat_ipv6",
            Self::Service { full: true, v6: false } => "hit/full",
            Self::Service { full: true, v6: true } => "hit/full_ipv6",
        }
    }
}

/// A switch that knows its flows.
pub(super) struct Subject(Rig);

impl Subject {
    pub(super) fn new(known: Known, flows: usize) -> Self {
        Self(match known {
            Known::Routed { v6 } => {
                let frames: Vec<_> = scattered(flows).map(|flow| udp(flow, v6)).collect();
                Rig::new(&routed(), &frames, 1)
            }
            Known::Service { full, v6 } => {
                full::rig(Case { full, v6, tcp: false }, scattered(flows), 1)
            }
        })
    }

    /// Returns ns per packet.
    pub(super) fn measure(&mut self, duration: Duration) -> f64 {
        const POLLS: usize = 64;
        let Rig { workers, now, .. } = &mut self.0;
        let begun = thread_time();
        let mut packets = 0;
        loop {
            packets += (0..POLLS).map(|_| workers[0].poll(*now)).sum::<usize>();
            let spent = thread_time() - begun;
            if spent >= duration {
                debug_assert_eq!(packets % BATCH, 0, "full batches");
                return spent.as_nanos() as f64 / packets as f64;
            }
        }
    }

    /// Checks that nothing was dropped and nothing missed.
    pub(super) fn check(&self) {
        self.0.check();
    }
}
