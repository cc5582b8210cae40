//! Programs for BPF_PROG_TEST_RUN: each makes its packet itself, so that every run is another flow. With live frames
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18) what they return happens: the packet enters the stack of a device, or leaves by it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
    use aya_ebpf::btf_maps::{Array, LruHashMap};
    use aya_ebpf::macros::{btf_map, xdp};
    use aya_ebpf::programs::XdpContext;
    use second_chance_xdp::{FlowKey, TO_ALTERNATE, Traffic, client};

    #[btf_map]
    static TRAFFIC: Array<Traffic, 1> = Array::new();
    /// The bench sets the size.
    #[btf_map]
    static FLOWS: LruHashMap<FlowKey, u64, 65536> = LruHashMap::new();

    /// Makes a packet, nothing else: what the others are compared with.
    #[xdp]
    pub fn generate(ctx: XdpContext) -> u32 {
        let Some((_, traffic)) = make(&ctx) else { return XDP_ABORTED };
        traffic.action
    }

    /// Choice (c): a map of the flows that were accepted here decides.
    #[xdp]
    pub fn known_flows(ctx: XdpContext) -> u32 {
        let Some((head, _)) = make(&ctx) else { return XDP_ABORTED };
        // SAFETY: `make` has checked that the head is there; all words are aligned as it is.
        unsafe {
            let key = FlowKey {
                client: [word(head, 26).read(), word(head, 28).read()],
                vip: [word(head, 30).read(), word(head, 32).read()],
                client_port: word(head, 34).read(),
                vip_port: word(head, 36).read(),
                proto: 6,
            };
            if *head.add(47) & SYN != 0 {
                let _ = FLOWS.insert(key, 1, 0);
                return XDP_PASS;
            }
            if FLOWS.get_ptr(key).map(|seen| seen.read_volatile()).is_some() {
                return XDP_PASS;
            }
            for (index, part) in TO_ALTERNATE.into_iter().enumerate() {
                word(head, 2 * index).write(part);
            }
        }
        XDP_TX
    }

    /// Lets a device take live frames, and receive what XDP sent.
    #[xdp]
    pub fn pass(_: XdpContext) -> u32 {
        XDP_PASS
    }

    /// The end of the line.
    #[xdp]
    pub fn discard(_: XdpContext) -> u32 {
        XDP_DROP
    }

    /// Writes the next packet. The head is aligned to eight bytes: the kernel lays it out so, here and in drivers' pages.
    #[inline(always)]
    fn make(ctx: &XdpContext) -> Option<(*mut u8, &'static Traffic)> {
        let head = ctx.data() as *mut u8;
        if head.wrapping_add(size_of_val(&[0u64; 7])) as usize > ctx.data_end() {
            return None;
        }
        let traffic = TRAFFIC.get_ptr_mut(0)?;
        // SAFETY: the pointer is that of a value in the map; one program runs at a time. The head was checked above.
        unsafe {
            let number = (*traffic).next;
            (*traffic).next = number + 1;
            let flows = (*traffic).flows;
            let client = client((*traffic).seed, if flows == 0 { number } else { number % flows });
            for index in 0..7 {
                head.cast::<u64>().add(index).write((*traffic).head[index]);
            }
            let (addr, port) = if (*traffic).answer == 0 { (26, 34) } else { (30, 36) };
            word(head, addr).write(client[0]);
            word(head, addr + 2).write(client[1]);
            word(head, port).write(client[2]);
            let addr_sum = u32::from(client[0]) + u32::from(client[1]);
            word(head, 24).write(fold((*traffic).ip_sum + addr_sum));
            word(head, 50).write(fold((*traffic).tcp_sum + addr_sum + u32::from(client[2])));
            Some((head, &*traffic))
        }
    }

    const SYN: u8 = 2;

    #[inline(always)]
    fn word(head: *mut u8, at: usize) -> *mut u16 {
        head.wrapping_add(at).cast()
    }

    #[inline(always)]
    fn fold(sum: u32) -> u16 {
        let sum = (sum & 0xffff) + (sum >> 16);
        !(((sum & 0xffff) + (sum >> 16)) as u16)
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
