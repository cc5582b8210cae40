//! Text for people: headings, aligned lines, colours on a terminal only.

use std::io::{IsTerminal, stdout};

/// The demo's output for people. Silent when the output is for machines.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    colours: bool,
    silent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Good,
    Bad,
    Strong,
    Faint,
}

impl Screen {
    /// `silent`: nothing but what the caller itself prints.
    pub fn new(silent: bool) -> Self {
        // https://no-color.org
        let colours = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colours, silent }
    }

    pub fn heading(&self, text: &str) {
        self.print(&format!("\n{}", self.paint(Colour::Strong, text)));
    }

    pub fn line(&self, text: &str) {
        self.print(&format!("  {text}"));
    }

    /// The present step, for the operator.
    pub fn progress(&self, text: &str) {
        self.line(&self.paint(Colour::Faint, &format!("… {text}")));
    }

    pub fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.colours {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Good => "32",
            Colour::Bad => "1;31",
            Colour::Strong => "1",
            Colour::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A count that should be complete: green if it is.
    pub fn of(&self, count: usize, all: usize) -> String {
        let colour = if count == all { Colour::Good } else { Colour::Bad };
        self.paint(colour, &format!("{count} of {all}"))
    }

    fn print(&self, text: &str) {
        if !self.silent {
            println!("{text}");
        }
    }
}
