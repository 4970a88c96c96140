//! What a worker remembers from one packet to the next. Owned by one worker, never shared.

pub mod fragments;
