//! JSONPath in kubectl's dialect: templates with text, `{range}`, wildcards, slices, unions, filters, `..`.
//!
//! Serves `-o jsonpath` and the printer columns of custom resources. Missing keys yield nothing, as kubectl has it.

use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    Path(Path),
    Range(Path, Vec<Piece>),
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Path {
    from_root: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    /// The value itself and all below it.
    Recursive,
    Index(i64),
    Slice {
        start: Option<i64>,
        end: Option<i64>,
        step: i64,
    },
    Union(Vec<Step>),
    Filter {
        left: Operand,
        test: Option<(Comparison, Operand)>,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(Path),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Parses a template: text with paths in braces.
    pub fn parse(template: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: template };
        Ok(Self { pieces: parser.pieces(false)? })
    }

    /// Parses one path without braces (`.spec.replicas`), as printer columns have it.
    pub fn parse_path(path: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: path };
        let parsed = parser.path()?;
        if !parser.rest.is_empty() {
            return Err(format!("unexpected {} in path {path}", parser.rest));
        }
        Ok(Self { pieces: vec![Piece::Path(parsed)] })
    }

    /// The values that the template's paths select, ranges unrolled.
    pub fn find<'v>(&self, value: &'v Value) -> Result<Vec<&'v Value>, String> {
        let mut found = Vec::new();
        collect(&self.pieces, value, value, &mut |output| {
            if let Output::Values(values) = output {
                found.extend(values);
            }
        })?;
        Ok(found)
    }

    /// The template's text; values of one path are separated by spaces, lists and maps are JSON.
    pub fn render(&self, value: &Value) -> Result<String, String> {
        let mut rendered = String::new();
        collect(&self.pieces, value, value, &mut |output| match output {
            Output::Text(text) => rendered.push_str(text),
            Output::Values(values) => {
                let texts: Vec<String> = values.into_iter().map(text).collect();
                rendered.push_str(&texts.join(" "));
            }
        })?;
        Ok(rendered)
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        value => value.to_string(),
    }
}

enum Output<'p, 'v> {
    Text(&'p str),
    Values(Vec<&'v Value>),
}

fn collect<'p, 'v>(
    pieces: &'p [Piece],
    root: &'v Value,
    current: &'v Value,
    emit: &mut dyn FnMut(Output<'p, 'v>),
) -> Result<(), String> {
    for piece in pieces {
        match piece {
            Piece::Text(text) => emit(Output::Text(text)),
            Piece::Path(path) => emit(Output::Values(path.select(root, current)?)),
            Piece::Range(path, body) => {
                for item in path.select(root, current)? {
                    collect(body, root, item, emit)?;
                }
            }
        }
    }
    Ok(())
}

impl Path {
    fn select<'v>(&self, root: &'v Value, current: &'v Value) -> Result<Vec<&'v Value>, String> {
        let mut values = vec![if self.from_root { root } else { current }];
        for step in &self.steps {
            let mut next = Vec::new();
            for value in values {
                step.select(root, value, &mut next)?;
            }
            values = next;
        }
        Ok(values)
    }
}

impl Step {
    fn select<'v>(&self, root: &'v Value, value: &'v Value, found: &mut Vec<&'v Value>) -> Result<(), String> {
        match self {
            Self::Field(name) => found.extend(value.get(name)),
            Self::Wildcard => found.extend(children(value)),
            Self::Recursive => descend(value, found),
            Self::Index(index) => {
                let Some(items) = value.as_array() else { return Ok(()) };
                let at = if *index < 0 { index + items.len() as i64 } else { *index };
                let item = usize::try_from(at).ok().and_then(|at| items.get(at));
                found.push(
                    item.ok_or_else(|| format!("array index out of bounds: index {index}, length {}", items.len()))?,
                );
            }
            Self::Slice { start, end, step } => {
                let Some(items) = value.as_array() else { return Ok(()) };
                let length = items.len() as i64;
                let bound = |at: i64| if at < 0 { at + length } else { at }.clamp(0, length) as usize;
                let range = bound(start.unwrap_or(0))..bound(end.unwrap_or(length));
                found.extend(items.get(range).unwrap_or_default().iter().step_by(*step as usize));
            }
            Self::Union(steps) => steps.iter().try_for_each(|step| step.select(root, value, found))?,
            Self::Filter { left, test } => {
                for item in value.as_array().into_iter().flatten() {
                    if passes(left, test.as_ref(), root, item)? {
                        found.push(item);
                    }
                }
            }
        }
        Ok(())
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn descend<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    found.push(value);
    children(value).for_each(|child| descend(child, found));
}

fn passes(left: &Operand, test: Option<&(Comparison, Operand)>, root: &Value, item: &Value) -> Result<bool, String> {
    let left = left.values(root, item)?;
    let Some((comparison, right)) = test else { return Ok(!left.is_empty()) };
    let right = right.values(root, item)?;
    if left.len() > 1 || right.len() > 1 {
        return Err("can only compare one element at a time".into());
    }
    let (Some(left), Some(right)) = (left.first(), right.first()) else { return Ok(false) };
    Ok(comparison.holds(left, right))
}

impl Operand {
    fn values<'v>(&'v self, root: &'v Value, item: &'v Value) -> Result<Vec<&'v Value>, String> {
        match self {
            Self::Path(path) => path.select(root, item),
            Self::Literal(value) => Ok(vec![value]),
        }
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        use std::cmp::Ordering::{Greater, Less};
        let ordering = match (left, right) {
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            (Value::Number(left), Value::Number(right)) => {
                left.as_f64().zip(right.as_f64()).and_then(|(left, right)| left.partial_cmp(&right))
            }
            (left, right) if left == right => Some(std::cmp::Ordering::Equal),
            _ => None,
        };
        match self {
            Self::Equal => ordering.is_some_and(|ordering| ordering.is_eq()),
            Self::NotEqual => !ordering.is_some_and(|ordering| ordering.is_eq()),
            Self::Less => ordering == Some(Less),
            Self::LessOrEqual => ordering.is_some_and(|ordering| ordering.is_le()),
            Self::Greater => ordering == Some(Greater),
            Self::GreaterOrEqual => ordering.is_some_and(|ordering| ordering.is_ge()),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
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
    fn pieces(&mut self, in_range: bool) -> Result<Vec<Piece>, String> {
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

    fn path(&mut self) -> Result<Path, String> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_render_as_kubectl_s() {
        let value = json!({
            "kind": "List",
            "items": [
                {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x"}}, "n": 1, "ok": true,
                    "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
                {"metadata": {"name": "b"}, "n": 2, "ports": [80, 443]},
                {"metadata": {"name": "c"}, "n": 3},
            ],
        });
        for (template, expected) in [
            ("kind is {.kind}", "kind is List"),
            ("{$.kind}", "List"),
            ("{kind}", "List"),
            ("{.items[*].metadata.name}", "a b c"),
            ("{.items[0].metadata.name}", "a"),
            ("{.items[-1].metadata.name}", "c"),
            ("{.items[0:2].metadata.name}", "a b"),
            ("{.items[::2].metadata.name}", "a c"),
            ("{.items[-2:].metadata.name}", "b c"),
            ("{.items[0,2].metadata.name}", "a c"),
            ("{.items[1]['metadata.name', 'n']}", "2"),
            ("{.items[1].ports}", "[80,443]"),
            ("{.items[1].ports[*]}", "80 443"),
            ("{..name}", "a b c"),
            ("{.items..name}", "a b c"),
            ("{.items[1].metadata.*}", "b"),
            (r"{.items[0].metadata.labels.app\.kubernetes\.io/name}", "x"),
            ("{.items[0].metadata.labels['app\\.kubernetes\\.io/name']}", "x"),
            (r#"{range .items[*]}{.metadata.name}{"\t"}{.n}{"\n"}{end}"#, "a\t1\nb\t2\nc\t3\n"),
            ("{range .items[*]}[{range .ports[*]}{@},{end}]{end}", "[][80,443,][]"),
            (r#"{.items[?(@.metadata.name=="b")].n}"#, "2"),
            ("{.items[?(@.n>1)].metadata.name}", "b c"),
            ("{.items[?(@.n != 2)].metadata.name}", "a c"),
            ("{.items[?(@.ports)].metadata.name}", "b"),
            ("{.items[?(@.ok==true)].metadata.name}", "a"),
            (r#"{.items[0].conditions[?(@.type=="Ready")].status}"#, "True"),
            ("{range .items[?(@.n<=2)]}{.metadata.name}{end}", "ab"),
            ("{.items[*]['n']}", "1 2 3"),
            ("{.nothing.here}", ""),
            ("{range .items[*]}{$.kind} {end}", "List List List "),
            ("no paths", "no paths"),
        ] {
            let path = JsonPath::parse(template).unwrap_or_else(|error| panic!("{template}: {error}"));
            assert_eq!(path.render(&value).unwrap(), expected, "{template}");
        }
        let error = JsonPath::parse("{.items[7]}").unwrap().render(&value).unwrap_err();
        assert_eq!(error, "array index out of bounds: index 7, length 3");
    }

    #[test]
    fn columns_find_values() {
        let value = json!({"spec": {"replicas": 3, "list": [{"a": 1}, {"a": 2}]}});
        let find = |path| -> Vec<Value> {
            JsonPath::parse_path(path).unwrap().find(&value).unwrap().into_iter().cloned().collect()
        };
        assert_eq!(find(".spec.replicas"), vec![json!(3)]);
        assert_eq!(find(".spec.list[*].a"), vec![json!(1), json!(2)]);
        assert_eq!(find(".status.x"), Vec::<Value>::new());
    }

    #[test]
    fn mistakes_are_refused() {
        for template in ["{.a", "{range .a}", "{end}", "{.a[}", "{.a['x}", "{.a[?(@.x==]}", "{.a[1:2:0]}", "{.a[x]}"] {
            assert!(JsonPath::parse(template).is_err(), "{template}");
        }
        assert!(JsonPath::parse_path(".a b").is_err());
    }
}
