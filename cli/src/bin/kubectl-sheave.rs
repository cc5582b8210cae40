//! What kubectl runs for `kubectl sheave`.

fn main() -> std::process::ExitCode {
    sheave::main()
}
