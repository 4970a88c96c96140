//! Packets that the switch answers itself.
