//! Validation as in the API server: each function checks a string and returns an error. The rules
//! are those of apimachinery's `validation` packages; the messages are our own.

pub(crate) mod address;
pub(crate) mod meta;
pub(crate) mod name;
