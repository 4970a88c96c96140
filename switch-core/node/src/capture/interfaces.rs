//! The interfaces of a capture: one for each port, with the name of the pod behind it.

use hashbrown::HashMap;
use podswitch_core::capture::CapturedFrame;
use podswitch_core::control::ControlPlane;
use podswitch_core::id::{Epoch, PortId};
use podswitch_core::port::pcap::{InterfaceId, PcapNgWriter};
use podswitch_core::snapshot::{PortFacts, Snapshot};

/// The writer of a capture.
type Writer = PcapNgWriter<Vec<u8>>;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Interfaces {
    snap_len: u32,
    /// Names of devices at the start of the capture.
    devices: HashMap<PortId, String>,
    list: Vec<Interface>,
    /// The interface of each port, and the epoch in which it was found: another pod may get the
    /// port later.
    by_port: HashMap<PortId, (Epoch, usize)>,
}

#[derive(Debug)]
struct Interface {
    id: InterfaceId,
    name: String,
    frames: u64,
}

/// A display name of a port: the pod, or what else is behind it.
pub(super) fn port_name(snapshot: &Snapshot, port: PortId) -> String {
    match snapshot.port(port) {
        PortFacts::Pod(pod) => {
            let workload = &pod.endpoint.workload;
            format!("{}/{}", workload.namespace, workload.name)
        }
        PortFacts::Host(_) => "node".to_owned(),
        PortFacts::Uplink(_) => "uplink".to_owned(),
        PortFacts::Bridge(_) | PortFacts::Unused => format!("port {port}"),
    }
}

impl Interfaces {
    /// The interfaces of all ports.
    pub(super) fn of(control: &ControlPlane, snap_len: u32, writer: &mut Writer) -> Self {
        let snapshot = control.snapshot();
        let ports = (0..PortId::MAX_PORTS as u16).map(PortId);
        let devices = ports.filter_map(|port| Some((port, control.port_info(port)?.name)));
        let mut ports: Vec<_> = devices.collect();
        let devices = ports.iter().cloned().collect();
        let mut interfaces = Self { snap_len, devices, list: Vec::new(), by_port: HashMap::new() };
        for (port, _) in ports.drain(..) {
            interfaces.find(&snapshot, port, writer);
        }
        interfaces
    }

    /// Index of a port's interface. A new interface is written first.
    fn find(&mut self, snapshot: &Snapshot, port: PortId, writer: &mut Writer) -> usize {
        if let Some((epoch, index)) = self.by_port.get(&port)
            && *epoch == snapshot.epoch
        {
            return *index;
        }
        let name = port_name(snapshot, port);
        let known = self.by_port.get(&port).map(|(_, index)| *index);
        let index = known.filter(|index| self.list[*index].name == name).unwrap_or_else(|| {
            let description = match self.devices.get(&port) {
                Some(device) => format!("port {port}, device {device}"),
                None => format!("port {port}"),
            };
            let id = to_memory(writer.interface(&name, &description, self.snap_len));
            self.list.push(Interface { id, name, frames: 0 });
            self.list.len() - 1
        });
        self.by_port.insert(port, (snapshot.epoch, index));
        index
    }

    /// The interface of a frame.
    pub(super) fn of_frame(&mut self, frame: &CapturedFrame, writer: &mut Writer) -> InterfaceId {
        let index = self.find(&frame.snapshot, frame.port, writer);
        self.list[index].frames += 1;
        self.list[index].id
    }

    /// Writes the number of frames of each interface. `comment`: for the first one.
    pub(super) fn statistics(&self, writer: &mut Writer, time_ns: u64, comment: &str) {
        for (index, interface) in self.list.iter().enumerate() {
            let comment = if index == 0 { comment } else { "" };
            let counts = [Some(interface.frames), None];
            to_memory(writer.statistics(interface.id, time_ns, counts, comment));
        }
    }
}

/// Writing to memory cannot fail, and frames were truncated to the maximum length.
pub(super) fn to_memory<T>(written: std::io::Result<T>) -> T {
    match written {
        Ok(value) => value,
        Err(error) => unreachable!("memory takes every block: {error}"),
    }
}
