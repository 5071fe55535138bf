//! The grammar of the dialect: recursive descent over what is left of the text.

use serde_json::Value;

use super::{Comparison, Operand, Path, Piece, Step, text};

pub(super) struct Parser<'a> {
    pub(super) rest: &'a str,
}

/// What ends a bare field name.
const NAME_END: &[char] = &['.', '[', ']', '}', ')', '(', ' ', ',', '=', '!', '<', '>', '@', '$', '*', '|', '&'];

impl<'a> Parser<'a> {
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        self.space();
        if self.eat(token) { Ok(()) } else { Err(format!("expected {token} before {:?}", self.rest)) }
    }

    /// Up to the end of the template, or to `{end}` within a range.
    pub(super) fn pieces(&mut self, in_range: bool) -> Result<Vec<Piece>, String> {
        let mut pieces = Vec::new();
        loop {
            let open = self.rest.find('{').unwrap_or(self.rest.len());
            if open > 0 {
                pieces.push(Piece::Text(self.rest[..open].to_owned()));
                self.rest = &self.rest[open..];
            }
            if !self.eat("{") {
                return if in_range { Err("unclosed range, expecting {end}".into()) } else { Ok(pieces) };
            }
            self.space();
            while !self.eat("}") {
                if self.keyword("range") {
                    pieces.push(self.range()?);
                    break;
                }
                if self.keyword("end") {
                    self.expect("}")?;
                    return if in_range { Ok(pieces) } else { Err("not in range, nothing to end".into()) };
                }
                pieces.push(self.piece()?);
                self.space();
                if self.rest.is_empty() {
                    return Err("unclosed action".into());
                }
            }
        }
    }

    fn keyword(&mut self, word: &str) -> bool {
        let follows = self.rest.strip_prefix(word);
        let ends = follows.is_some_and(|rest| rest.starts_with(NAME_END));
        ends && self.eat(word)
    }

    /// The path of a range and, up to its own `{end}`, what is repeated.
    fn range(&mut self) -> Result<Piece, String> {
        self.space();
        let path = self.path()?;
        self.expect("}")?;
        Ok(Piece::Range(path, self.pieces(true)?))
    }

    fn piece(&mut self) -> Result<Piece, String> {
        match self.literal()? {
            Some(value) => Ok(Piece::Text(text(&value))),
            None => Ok(Piece::Path(self.path()?)),
        }
    }

    pub(super) fn path(&mut self) -> Result<Path, String> {
        let from_root = self.eat("$");
        let mut path = Path { from_root, steps: Vec::new() };
        if !from_root && !self.eat("@") && !self.rest.starts_with(['.', '[']) {
            if self.rest.is_empty() || self.rest.starts_with(NAME_END) {
                return Err(format!("unrecognized character in action: {:?}", self.rest));
            }
            path.steps.push(Step::Field(self.name()));
        }
        loop {
            if self.eat("..") {
                path.steps.push(Step::Recursive);
                if !self.rest.starts_with(['[', '.']) {
                    path.steps.push(self.dotted()?);
                }
            } else if self.eat(".") {
                if !self.rest.is_empty() && !self.rest.starts_with(['[', '}', ' ', ')']) {
                    path.steps.push(self.dotted()?);
                }
            } else if self.eat("[") {
                path.steps.push(self.bracket()?);
            } else {
                return Ok(path);
            }
        }
    }

    fn dotted(&mut self) -> Result<Step, String> {
        if self.eat("*") {
            return Ok(Step::Wildcard);
        }
        match self.name() {
            name if name.is_empty() => Err(format!("expected a field name before {:?}", self.rest)),
            name => Ok(Step::Field(name)),
        }
    }

    /// A field name; a backslash takes the next character as it is.
    fn name(&mut self) -> String {
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                c if NAME_END.contains(&c) => {
                    end = at;
                    break;
                }
                c => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        name
    }

    /// After `[`: an index, slice, wildcard, quoted name, union or filter.
    fn bracket(&mut self) -> Result<Step, String> {
        self.space();
        if self.eat("?") {
            self.expect("(")?;
            let filter = self.filter()?;
            self.expect(")")?;
            self.expect("]")?;
            return Ok(filter);
        }
        let mut steps = vec![self.bracket_item()?];
        self.space();
        while self.eat(",") {
            steps.push(self.bracket_item()?);
            self.space();
        }
        self.expect("]")?;
        Ok(if steps.len() == 1 { steps.remove(0) } else { Step::Union(steps) })
    }

    fn bracket_item(&mut self) -> Result<Step, String> {
        self.space();
        if self.eat("*") {
            return Ok(Step::Wildcard);
        }
        if let Some(name) = self.quoted()? {
            return Ok(Step::Field(name));
        }
        let first = self.integer()?;
        if !self.eat(":") {
            return first.map(Step::Index).ok_or_else(|| format!("invalid array index {:?}", self.rest));
        }
        let end = self.integer()?;
        let step = if self.eat(":") { self.integer()?.unwrap_or(1) } else { 1 };
        if step < 1 {
            return Err("step must be >= 1".into());
        }
        Ok(Step::Slice { start: first, end, step })
    }

    fn integer(&mut self) -> Result<Option<i64>, String> {
        self.space();
        let end = self.rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_| format!("invalid array index {digits}"))
    }

    fn filter(&mut self) -> Result<Step, String> {
        const COMPARISONS: [(&str, Comparison); 6] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let left = self.operand()?;
        self.space();
        let Some((_, comparison)) = COMPARISONS.iter().find(|(token, _)| self.eat(token)) else {
            return Ok(Step::Filter { left, test: None });
        };
        let right = self.operand()?;
        Ok(Step::Filter { left, test: Some((*comparison, right)) })
    }

    fn operand(&mut self) -> Result<Operand, String> {
        self.space();
        match self.literal()? {
            Some(value) => Ok(Operand::Literal(value)),
            None => self.path().map(Operand::Path),
        }
    }

    /// Quoted text, a number, or a boolean.
    fn literal(&mut self) -> Result<Option<Value>, String> {
        if let Some(text) = self.quoted()? {
            return Ok(Some(text.into()));
        }
        for (word, value) in [("true", true), ("false", false)] {
            if self.keyword(word) {
                return Ok(Some(value.into()));
            }
        }
        if self.rest.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            let end = self.rest.find(|c: char| !c.is_ascii_digit() && c != '-' && c != '.').unwrap_or(self.rest.len());
            let (number, rest) = self.rest.split_at(end);
            self.rest = rest;
            return serde_json::from_str(number).map(Some).map_err(|_| format!("bad number {number}"));
        }
        Ok(None)
    }

    fn quoted(&mut self) -> Result<Option<String>, String> {
        let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"')) else { return Ok(None) };
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => text.extend(chars.next().map(|(_, c)| match c {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    c => c,
                })),
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(Some(text));
                }
                c => text.push(c),
            }
        }
        Err("unterminated quoted string".into())
    }
}
