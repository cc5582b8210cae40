fn main() -> std::process::ExitCode {
    sheave::main()
}
