//! A window on the bytes of a frame: it judges nothing and never reads or writes outside.

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The frame in the kernel or on the host.
pub trait Frame {
    /// Bytes from the destination MAC address to the end.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `N` bytes at `at`, if the frame has them, to read fields from.
    fn window<const N: usize>(&self, at: usize) -> Option<impl Window>;

    /// `N` bytes at `at`, if the frame has them, all of them.
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// Writes `N` bytes at `at`; `None`, and nothing written, if the frame is too short.
    #[must_use]
    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()>;

    /// Cuts the frame to `len` bytes (it is at least that long); `None` if the system refuses.
    #[must_use]
    fn truncate(&mut self, len: usize) -> Option<()>;
}

/// Bytes that the frame has. A field is read when it is asked for, in one piece. (LLVM reads an array byte by byte and joins the bytes
/// again.)
pub trait Window {
    /// Two bytes at `AT`, which is within the window.
    fn half<const AT: usize>(&self) -> [u8; 2];

    /// Four bytes at `AT`, which are within the window.
    fn word<const AT: usize>(&self) -> [u8; 4];
}

/// An Ethernet address in one word, its first byte lowest, the upper two bytes zero: compared and looked up at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacWord(pub u64);

impl MacWord {
    #[inline(always)]
    pub fn new(first: [u8; 4], last: [u8; 2]) -> Self {
        Self(u64::from(u32::from_le_bytes(first)) | u64::from(u16::from_le_bytes(last)) << 32)
    }

    #[inline(always)]
    pub fn mac(self) -> Mac {
        let [m0, m1, m2, m3, m4, m5, _, _] = self.0.to_le_bytes();
        [m0, m1, m2, m3, m4, m5]
    }
}
