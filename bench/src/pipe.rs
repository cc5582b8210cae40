//! A reader that wants no more, such as `head`, ends a program that only prints, quietly.

use nix::sys::signal::{SigHandler, Signal, signal};

/// For programs that have nothing to clean up: a lab would stay behind.
pub fn end_without_reader() {
    // SAFETY: SIGPIPE gets its default action, which runs no code of this program.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    const CHILD: &str = "SHEAVE_BENCH_PIPE_CHILD";

    /// The child is this test once more, and prints more than the pipe holds.
    #[test]
    fn a_program_that_prints_ends_with_its_reader() {
        if std::env::var_os(CHILD).is_some() {
            end_without_reader();
            (0..100_000).for_each(|line| println!("{line}"));
            return;
        }
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", "pipe::tests::a_program_that_prints_ends_with_its_reader", "--nocapture"]);
        let child = child.env(CHILD, "1").stdout(writer).stderr(Stdio::piped()).spawn().expect("it runs");
        // The test harness prints before the test does. Who has seen the second line wants no more.
        assert!(BufReader::new(reader).lines().map_while(Result::ok).any(|line| line == "1"));
        let ended = child.wait_with_output().expect("it ends");
        assert_eq!(ended.status.signal(), Some(Signal::SIGPIPE as i32), "{ended:?}");
    }
}
