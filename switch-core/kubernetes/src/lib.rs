//! Kubernetes objects read into podswitch configuration.
#![forbid(unsafe_code)]
