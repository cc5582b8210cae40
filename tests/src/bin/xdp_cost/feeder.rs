//! The feeder: an XDP program that makes the frame of the next flow and tail-calls the program that is measured.
//!
//! BPF_PROG_TEST_RUN runs one frame again and again, as the program left it. With the feeder in front, every run has a frame that
//! is whole (addresses, flags, time to live) and of another flow, without a system call between two runs, whose cost would drown
//! what is measured. The feeder is the same for all measured programs, so it leaves by subtraction. Its last instruction before
//! the tail call is an atomic one: the processor finishes the stores to the frame first, so that no program pays for reading in
//! other widths what the feeder has just written (a frame from a network card has no such debts).
//!
//! Read first: include/uapi/linux/bpf.h, `union bpf_attr`; Documentation/bpf/standardization/instruction-set.rst.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// An XDP program loaded without an object file.
pub struct Program {
    fd: OwnedFd,
    /// A map of programs is emptied when no program in user space holds it any more.
    _targets: Option<OwnedFd>,
}

impl Program {
    /// `return XDP_TX;`
    pub fn bare() -> io::Result<Self> {
        Ok(Self { fd: load(&[op(MOV, 0, 0, 0, XDP_TX), op(EXIT, 0, 0, 0, 0)])?, _targets: None })
    }

    /// Feeds frames of `flows` flows in turn to `target`. A flow is a source address and port; everything else is as in `frame`.
    pub fn feeder(frame: &[u8], flows: u32, target: BorrowedFd<'_>) -> io::Result<Self> {
        let number = create_map(MAP_ARRAY, size_of::<[u64; 2]>())?;
        let targets = create_map(MAP_PROG_ARRAY, size_of::<u32>())?;
        update(&targets, target.as_raw_fd())?;
        Ok(Self { fd: load(&feeder(frame, flows, &number, &targets))?, _targets: Some(targets) })
    }

    /// Mean nanoseconds of one of `repeat` runs.
    pub fn time(&self, frame: &[u8], repeat: u32) -> io::Result<u32> {
        let mut attr = TestRun {
            prog_fd: self.fd.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        if attr.retval == XDP_ABORTED as u32 {
            return Err(io::Error::other("the feeder did not reach its target"));
        }
        Ok(attr.duration)
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// r6: context, r7: frame, r8: the flow's number in its map, r9: that number.
fn feeder(frame: &[u8], flows: u32, number: &OwnedFd, targets: &OwnedFd) -> Vec<u64> {
    let word = |at: usize| i32::from_le_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    let half = |at: usize| i32::from(i16::from_le_bytes([frame[at], frame[at + 1]]));
    let [number, number_rest] = map_address(1, number);
    let [targets, targets_rest] = map_address(2, targets);
    let start = [
        op(MOV_REG, 6, 1, 0, 0),
        op(LOAD_U32, 7, 6, 0, 0),
        op(LOAD_U32, 8, 6, 4, 0),
        op(MOV_REG, 2, 7, 0, 0),
        op(ADD, 2, 0, 0, FED_LEN),
        op(IF_GREATER_REG, 2, 8, 28, 0),
        op(STORE_U32, 10, 0, -4, 0),
        op(MOV_REG, 2, 10, 0, 0),
        op(ADD, 2, 0, 0, -4),
        number,
        number_rest,
        op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        op(IF_EQUAL, 0, 0, 21, 0),
        op(MOV_REG, 8, 0, 0, 0),
        // The next number.
        op(LOAD_U64, 9, 8, 0, 0),
        op(MOV_REG, 1, 9, 0, 0),
        op(ADD, 1, 0, 0, 1),
        op(IF_LESS, 1, 0, 1, flows as i32),
        op(MOV, 1, 0, 0, 0),
        op(STORE_REG_U64, 8, 1, 0, 0),
    ];
    let end = [
        // MAC addresses; fragment, time to live, protocol; checksum.
        op(STORE_U32, 7, 0, 0, word(0)),
        op(STORE_U32, 7, 0, 4, word(4)),
        op(STORE_U32, 7, 0, 8, word(8)),
        op(STORE_U32, 7, 0, 20, word(20)),
        op(STORE_U16, 7, 0, 24, half(24)),
        // Source: 100.64.0.0 + the lower half of the number, its port as in the frame + the upper half.
        op(MOV_REG, 1, 9, 0, 0),
        op(SHIFT_LEFT, 1, 0, 0, 16),
        op(OR, 1, 0, 0, 0x4064),
        op(STORE_REG_U32, 7, 1, 26, 0),
        op(SHIFT_RIGHT, 9, 0, 0, 16),
        op(ADD, 9, 0, 0, half(34) & 0xffff),
        op(STORE_REG_U16, 7, 9, 34, 0),
        op(ATOMIC_ADD_U64, 8, 9, 8, 0),
        op(MOV_REG, 1, 6, 0, 0),
        targets,
        targets_rest,
        op(MOV, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, TAIL_CALL),
        op(MOV, 0, 0, 0, XDP_ABORTED),
        op(EXIT, 0, 0, 0, 0),
    ];
    let mut program = [&start[..], &end].concat();
    // Both ways out lead to the last two instructions.
    for at in [5, 12] {
        let offset = (program.len() - 2 - (at + 1)) as u64;
        program[at] = program[at] & !0xffff_0000 | offset << 16;
    }
    program
}

const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

/// Loads the address of a map: one instruction of double width.
fn map_address(register: u8, map: &OwnedFd) -> [u64; 2] {
    [op(LOAD_WIDE, register, PSEUDO_MAP_FD, 0, map.as_raw_fd()), 0]
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let mut attr = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        // Programs that call each other must be made to be attached to the same.
        expected_attach_type: ATTACH_XDP,
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &mut attr).and_then(owned)
}

fn create_map(kind: u32, value_size: usize) -> io::Result<OwnedFd> {
    let mut attr = MapCreate { map_type: kind, key_size: 4, value_size: value_size as u32, max_entries: 1, flags: 0 };
    bpf(MAP_CREATE, &mut attr).and_then(owned)
}

fn update(map: &OwnedFd, value: i32) -> io::Result<()> {
    let mut attr = MapUpdate {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(&0u32) as u64,
        value: std::ptr::from_ref(&value) as u64,
        ..MapUpdate::default()
    };
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a new descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is one of the structures below, of the given length; what it points to outlives the call, and the kernel
    // writes to nothing but `attr`.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 4],
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The feeder writes this far.
const FED_LEN: i32 = 36;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const MAP_ARRAY: u32 = 2;
const MAP_PROG_ARRAY: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;

const XDP_ABORTED: i32 = 0;
const XDP_TX: i32 = 3;
const MAP_LOOKUP_ELEM: i32 = 1;
const TAIL_CALL: i32 = 12;
const PSEUDO_MAP_FD: u8 = 1;

const ADD: u8 = 0x07;
const IF_EQUAL: u8 = 0x15;
const LOAD_WIDE: u8 = 0x18;
const IF_GREATER_REG: u8 = 0x2d;
const OR: u8 = 0x47;
const LOAD_U32: u8 = 0x61;
const STORE_U32: u8 = 0x62;
const STORE_REG_U32: u8 = 0x63;
const SHIFT_LEFT: u8 = 0x67;
const STORE_U16: u8 = 0x6a;
const STORE_REG_U16: u8 = 0x6b;
const SHIFT_RIGHT: u8 = 0x77;
const LOAD_U64: u8 = 0x79;
const STORE_REG_U64: u8 = 0x7b;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const IF_LESS: u8 = 0xa5;
const MOV: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ATOMIC_ADD_U64: u8 = 0xdb;
