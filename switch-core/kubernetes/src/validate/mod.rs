//! Validation as in the API server: each function takes a text and returns its error. The rules are
//! those of apimachinery's `validation` packages; the messages are ours.

pub(crate) mod address;
pub(crate) mod meta;
pub(crate) mod name;
