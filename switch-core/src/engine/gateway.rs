//! Packets for the gateway itself: it answers pings, and has no port open.

use podswitch_wire::parse::{Icmp, Parsed};

use super::{Engine, Turn};
use crate::answer::icmp;
use crate::packet::Packet;

impl Engine {
    pub(super) fn gateway(&mut self, turn: &mut Turn<'_>, packet: Packet, parsed: &Parsed) {
        match parsed.icmp {
            Icmp::Query => {
                if let Ok(answer) = icmp::echo_reply(&packet, parsed, turn.pool) {
                    self.answer(turn, &packet, answer);
                }
            }
            Icmp::None => self.refuse(turn, &packet, parsed),
            Icmp::Reply | Icmp::Error | Icmp::Neighbour | Icmp::Other => {}
        }
        self.consume(turn, packet);
    }
}
