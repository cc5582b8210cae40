//! The XDP entry points: walk the path, count the verdict once, return its action.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For `Place`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod kernel {
    use core::arch::asm;

    use aya_ebpf::bindings::xdp_action;
    use aya_ebpf::helpers::bpf_xdp_adjust_tail;
    use aya_ebpf::macros::xdp;
    use aya_ebpf::programs::XdpContext;
    use ebpf_common::{Fate, Verdict};
    use sheave_ebpf::Frame;
    use sheave_ebpf::frame::Window;
    use sheave_ebpf::maps::{KernelTables, NEXT, count};

    #[xdp]
    #[inline(always)]
    pub fn sheave_xdp(ctx: XdpContext) -> u32 {
        let verdict = sheave_ebpf::walk(&mut XdpFrame(ctx), &KernelTables);
        count(verdict);
        action(verdict)
    }

    /// Of the first of two speakers (docs/decisions/0016). What is its own never reaches the program of the second one. An entry of its
    /// own, because not every kernel lets a program with functions call another program in its tail (on arm64 those since 6.0).
    #[xdp]
    #[inline(always)]
    pub fn sheave_xdp_chain(ctx: XdpContext) -> u32 {
        let frame = ctx.ctx;
        let verdict = sheave_ebpf::walk(&mut XdpFrame(ctx), &KernelTables);
        count(verdict);
        if let Verdict::NotOurs = verdict {
            // SAFETY: the context is the one this program was called with; nothing is dropped. Without a second program this returns.
            unsafe { NEXT.tail_call(&XdpContext::new(frame), 0) };
        }
        action(verdict)
    }

    #[inline(always)]
    fn action(verdict: Verdict) -> u32 {
        match verdict.fate() {
            Fate::Pass => xdp_action::XDP_PASS,
            Fate::Tx => xdp_action::XDP_TX,
            Fate::Drop => xdp_action::XDP_DROP,
        }
    }

    struct XdpFrame(XdpContext);

    impl XdpFrame {
        /// The place of `len` bytes at `at`. The verifier (since 4.7) knows how far it may go from a pointer that was compared
        /// with the end of the packet, if that very pointer is used: so the place is computed once.
        #[inline(always)]
        fn place(&self, at: usize, len: usize) -> Option<*mut u8> {
            let start = (self.0.data() as *mut u8).wrapping_add(at);
            if start.wrapping_add(len) as usize > self.0.data_end() { None } else { Some(start) }
        }
    }

    impl Frame for XdpFrame {
        #[inline(always)]
        fn len(&self) -> usize {
            self.0.data_end() - self.0.data()
        }

        #[inline(always)]
        fn window<const N: usize>(&self, at: usize) -> Option<impl Window> {
            self.place(at, N).map(|place| Place(place))
        }

        #[inline(always)]
        fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
            const { assert!(N.is_multiple_of(2), "Even says so") };
            // SAFETY: `place` has checked the bounds; for the alignment see `Even`.
            self.place(at, N).map(|place| unsafe { place.cast::<Even<N>>().read() }.0)
        }

        #[inline(always)]
        fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()> {
            const { assert!(N.is_multiple_of(2), "Even says so") };
            // SAFETY: `place` has checked the bounds; for the alignment see `Even`.
            self.place(at, N).map(|place| unsafe { place.cast::<Even<N>>().write(Even(bytes)) })
        }

        #[inline(always)]
        fn truncate(&mut self, len: usize) -> Option<()> {
            let delta = len as i32 - self.len() as i32;
            // SAFETY: the context is the one this program was called with. Pointers into the packet end here; `place` reads them
            // anew.
            let refused = unsafe { bpf_xdp_adjust_tail(self.0.ctx, delta) };
            (refused == 0).then_some(())
        }
    }

    /// Bytes of the frame. A header begins at any even address: LLVM would read a word of it in pieces. Processors with a JIT of ours (amd64,
    /// arm64) read it at once, and their verifiers let them (not on the stack); but to Rust and LLVM such a read is not allowed. So it is
    /// an instruction.
    struct Place(*const u8);

    impl Window for Place {
        #[inline(always)]
        fn half<const AT: usize>(&self) -> [u8; 2] {
            let half: u64;
            // SAFETY: within the bytes that `XdpFrame::place` has checked, or the verifier refuses the program.
            unsafe {
                asm!("{half} = *(u16 *)({place} + {at})", half = lateout(reg) half, place = in(reg) self.0, at = const AT,
                    options(pure, readonly, nostack, preserves_flags));
                core::hint::assert_unchecked(half <= 0xffff);
            }
            (half as u16).to_ne_bytes()
        }

        #[inline(always)]
        fn word<const AT: usize>(&self) -> [u8; 4] {
            let word: u64;
            // SAFETY: as above.
            unsafe {
                asm!("{word} = *(u32 *)({place} + {at})", word = lateout(reg) word, place = in(reg) self.0, at = const AT,
                    options(pure, readonly, nostack, preserves_flags));
                core::hint::assert_unchecked(word <= 0xffff_ffff);
            }
            (word as u32).to_ne_bytes()
        }
    }

    /// Bytes at an even address. A frame begins at one, and every header begins at an even place of it: so they are moved two
    /// by two (LLVM moves them one by one where it knows of no alignment). A machine that minds has a verifier that
    /// does.
    #[repr(align(2))]
    struct Even<const N: usize>([u8; N]);

    /// Never reached: the verifier refuses a program with a loop that does not end.
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// The clock helper wants a GPL-compatible licence.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
