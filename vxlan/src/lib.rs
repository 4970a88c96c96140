//! VXLAN (RFC 7348): header, encapsulation template and VTEP table of podswitch.
#![forbid(unsafe_code)]
