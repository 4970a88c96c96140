//! Where frames go. Read by every worker on the packet path; changed by the control plane, and
//! by the workers themselves where addresses are learnt.

pub mod fdb;
