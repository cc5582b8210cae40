#![no_std]

extern crate alloc;

pub mod backend;
pub mod eligibility;
pub mod forwarding;
pub mod view;
