pub mod endpoint;
pub mod lab;
pub mod packet;
pub mod scenario;
pub mod sim;
pub mod traffic;
pub mod xdp;
