//! Where a VIP packet goes: VIP -> service port -> ring row -> node.

/// Value of map `VIPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipValue {
    /// Reserved, 0.
    pub flags: u32,
}

/// Key of map `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The VIP, network byte order.
    pub addr: [u8; 4],
    /// The service port, network byte order.
    pub port: [u8; 2],
    /// IP protocol: 6 TCP, 17 UDP.
    pub proto: u8,
    pub pad: u8,
}

/// Value of map `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceValue {
    /// Slot in `RINGS`.
    pub ring: u32,
    /// Bit set of [`ServiceValue::CLIENT_AFFINITY`].
    pub flags: u32,
}

impl ServiceValue {
    /// sessionAffinity ClientIP: the row is chosen by the client address only.
    pub const CLIENT_AFFINITY: u32 = 1;
}

/// One element (index >= 1) of a ring: primary node slot in the low 16 bits, alternate in the high 16 (0: none).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row(pub u32);

impl Row {
    pub const fn new(primary: u16, alternate: u16) -> Self {
        Self((primary as u32) | ((alternate as u32) << 16))
    }
    pub const fn primary(self) -> u16 {
        self.0 as u16
    }
    pub const fn alternate(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// Value of map `NODES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The node's address on the segment, network byte order; for people who read the map.
    pub addr: [u8; 4],
    /// Where to send frames for it. All zero: not known (yet), see `Verdict::NoNeighbour`.
    pub mac: [u8; 6],
    pub pad: [u8; 2],
}

/// Key of map `PEERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacKey {
    pub mac: [u8; 6],
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<VipValue>() == 4);
const _: () = assert!(size_of::<ServiceKey>() == 8);
const _: () = assert!(size_of::<ServiceValue>() == 8);
const _: () = assert!(size_of::<Node>() == 12);
const _: () = assert!(size_of::<MacKey>() == 8);
