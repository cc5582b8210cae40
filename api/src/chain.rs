//! An error with everything that caused it, in one line: `client error (Connect)` alone helps no operator.

use std::error::Error;
use std::fmt;

/// Prints the error and its sources, outermost first. A source that the text before it quotes already is left out.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = self.0.to_string();
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            if !printed.contains(&text) {
                printed.push_str(": ");
                printed.push_str(&text);
            }
            next = error.source();
        }
        f.write_str(&printed)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("list Services: {0}")]
    struct List(#[source] Client);

    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Client(#[source] io::Error);

    #[test]
    fn every_cause_is_printed_once() {
        let error = List(Client(io::Error::new(io::ErrorKind::TimedOut, "connection timed out")));
        assert_eq!(error.to_string(), "list Services: client error (Connect)");
        assert_eq!(Chain(&error).to_string(), "list Services: client error (Connect): connection timed out");
    }
}
