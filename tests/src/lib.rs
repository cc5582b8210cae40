pub mod lab;
pub mod packet;
pub mod scenario;
pub mod traffic;
pub mod xdp;
