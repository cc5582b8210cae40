//! The kernel's state of one TCP connection: `tcp_info` in include/uapi/linux/tcp.h.

use std::io;
use std::os::fd::AsRawFd;

pub fn tcp_info(stream: &impl AsRawFd) -> io::Result<libc::tcp_info> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (fd, place) = (stream.as_raw_fd(), info.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `length` bytes to `place`, which has as many; all of them may be zero.
    unsafe {
        if libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(info.assume_init())
    }
}
