//! JSONPath in kubectl's dialect: templates with text, `{range}`, wildcards, slices, unions, filters, `..`.
//!
//! Serves `-o jsonpath` and the printer columns of custom resources. Missing keys yield nothing, as kubectl has it.

use serde_json::Value;

mod parse;

use parse::Parser;

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

#[cfg(test)]
mod tests;
