pub mod lab;
pub mod traffic;
pub mod xdp;
