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

    /// `N` bytes at `at`, if the frame has them.
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// Writes `N` bytes at `at`; `None`, and nothing written, if the frame is too short.
    #[must_use]
    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()>;

    /// Cuts the frame to `len` bytes (it is at least that long); `None` if the system refuses.
    #[must_use]
    fn truncate(&mut self, len: usize) -> Option<()>;
}
