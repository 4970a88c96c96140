//! Hand-over between running switches: with every kind of device, and with successors that fail at every step.

mod devices;
mod faults;
mod sockets;
mod stay;
