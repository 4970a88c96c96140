//! Placeholder.
use crate::id::PortId;
use wire::addr::Mac;
use wire::flow_key::HashKey;
/// x
#[derive(Debug)]
pub struct Fdb;
#[allow(missing_docs)]
impl Fdb {
    pub fn new(_: usize, _: HashKey) -> Self {
        Self
    }
    pub fn learn(&self, _: u16, _: Mac, _: PortId, _: u32, _: u32, _: u32) {}
    pub fn lookup(&self, _: u16, _: Mac, _: u32, _: u32) -> Option<PortId> {
        None
    }
    pub fn sweep(&self, _: usize, _: u32) {}
    pub fn flush_port(&self, _: PortId) {}
}
