//! What is in a Markdown document: headings, links, code spans, commands, prose. As much of Markdown as our documents use.

/// A piece of a document, and the line that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    pub line: usize,
    pub text: String,
}

#[derive(Debug, Default)]
pub struct Document {
    /// Without markup.
    pub headings: Vec<String>,
    /// What `#…` in a link may name.
    pub anchors: Vec<String>,
    /// Text between `**`.
    pub terms: Vec<String>,
    pub links: Vec<At>,
    /// Text between backticks.
    pub spans: Vec<At>,
    /// Lines of blocks that are marked as `sh`.
    pub commands: Vec<At>,
    /// Paragraphs without the targets of links.
    pub prose: Vec<At>,
}

impl Document {
    pub fn parse(text: &str) -> Self {
        let mut document = Self::default();
        let mut fence: Option<bool> = None;
        let mut paragraph = At { line: 0, text: String::new() };
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                document.paragraph(&mut paragraph);
                fence = if fence.is_some() { None } else { Some(language == "sh") };
            } else if let Some(is_shell) = fence {
                if is_shell {
                    document.commands.push(At { line: number, text: line.into() });
                }
            } else if line.trim().is_empty() {
                document.paragraph(&mut paragraph);
            } else {
                if line.starts_with('#') {
                    document.paragraph(&mut paragraph);
                    document.heading(line.trim_start_matches('#').trim());
                }
                if paragraph.text.is_empty() {
                    paragraph.line = number;
                }
                paragraph.text.push_str(line);
                paragraph.text.push('\n');
            }
        }
        document.paragraph(&mut paragraph);
        document
    }

    fn heading(&mut self, text: &str) {
        let plain = text.replace('`', "");
        let slug = slug(&plain);
        let same = self.anchors.iter().filter(|anchor| **anchor == slug).count();
        self.anchors.push(if same == 0 { slug } else { format!("{slug}-{same}") });
        self.headings.push(plain);
    }

    /// A paragraph is over: takes out of it what is checked, and leaves it empty.
    fn paragraph(&mut self, paragraph: &mut At) {
        let At { line, text } = std::mem::replace(paragraph, At { line: 0, text: String::new() });
        let line_at = |at: usize| line + text[..at].matches('\n').count();
        let mut prose = String::new();
        let mut rest = 0;
        while let Some(found) = text[rest..].find(['`', ']']).map(|at| rest + at) {
            let (marker, after) = (&text[found..=found], found + 1);
            prose.push_str(&text[rest..after]);
            rest = after;
            if marker == "`" {
                let Some(length) = text[after..].find('`') else { break };
                let span = text[after..after + length].replace('\n', " ");
                prose.push_str(&text[after..=after + length]);
                self.spans.push(At { line: line_at(found), text: span });
                rest = after + length + 1;
            } else if let Some(target) = text[after..].strip_prefix('(').and_then(|rest| rest.split(')').next()) {
                self.links.push(At { line: line_at(found), text: target.into() });
                rest = after + target.len() + 2;
            }
        }
        prose.push_str(text.get(rest..).unwrap_or_default());
        self.terms.extend(prose.split("**").skip(1).step_by(2).map(String::from));
        if !prose.is_empty() {
            self.prose.push(At { line, text: prose.replace('\n', " ") });
        }
    }
}

/// As GitHub makes anchors of headings.
fn slug(heading: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter);
    heading.to_lowercase().chars().filter(kept).map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}
