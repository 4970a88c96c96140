//! Checks as the API server makes them: each takes a text and returns what is wrong with it. The
//! rules are those of apimachinery's `validation` packages; the messages are ours.

pub(crate) mod address;
pub(crate) mod meta;
pub(crate) mod name;
