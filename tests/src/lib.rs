pub mod lab;
pub mod traffic;
