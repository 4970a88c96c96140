//! The zone's answers, read by NLnet Labs' `domain`: an encoder and decoder that knows nothing of ours.

mod cases;
mod clusterset;
mod explained;
mod message;
mod pods;
mod properties;
mod reverse;
mod truncation;
mod world;
