use sheave_ebpf::host::HostTables;
use sheave_tests::xdp::Kernel;

#[test]
fn loads() {
    let mut kernel = Kernel::load(&HostTables::default()).unwrap();
    println!("{:?}", kernel.run(&[0; 64]).unwrap());
}
