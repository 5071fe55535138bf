//! Label selectors: the query syntax (`a=b,c in (d,e),!f,g>1`) and `metav1.LabelSelector`.
//!
//! Errors are upstream's, odd spots included, since kubectl shows them as they are.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::{
    field::{FieldError, quote},
    names,
};

/// A conjunction of requirements; without any it selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without repetitions.
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut requirements: Vec<_> = requirements.into_iter().collect();
        requirements.sort();
        Self { requirements, nothing: false }
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: lex(text), position: 0 };
        parser.selector().map(Self::new)
    }

    pub fn from_map(labels: &BTreeMap<String, String>) -> Self {
        Self::new(labels.iter().map(|(key, value)| Requirement::equals(key, value)))
    }

    /// A `metav1.LabelSelector`: absent selects nothing, empty selects everything.
    pub fn from_label_selector(selector: &Value) -> Result<Self, String> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![text(value)])?);
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{} is not a valid label selector operator", quote(other))),
            };
            let values = expression["values"].as_array().into_iter().flatten().map(text).collect();
            requirements.push(Requirement::new(&text(&expression["key"]), operator, values)?);
        }
        Ok(Self::new(requirements))
    }

    /// Whether labels, looked up by key, satisfy every requirement.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches(|key| labels.get(key).map(String::as_str))
    }

    /// Against `metadata.labels` of an object.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|key| crate::meta::label(object, key))
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        values.sort();
        values.dedup();
        check_key(key, "key")?;
        let wrong = |path: &str, value: Value, detail: &str| Err(FieldError::invalid(path, value, detail).to_string());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return wrong("values", values.into(), "for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                return wrong("values", values.into(), "exact-match compatibility requires one single value");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return wrong("values", values.into(), "values set must be empty for exists and does not exist");
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                return wrong("values", values.into(), "for 'Gt', 'Lt' operators, exactly one value is required");
            }
            Operator::GreaterThan | Operator::LessThan if values[0].parse::<i64>().is_err() => {
                let value = values.swap_remove(0).into();
                return wrong("values[0]", value, "for 'Gt', 'Lt' operators, the value must be an integer");
            }
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            let errors = names::is_valid_label_value(value);
            if !errors.is_empty() {
                return wrong(&format!("values[{index}][{key}]"), value.as_str().into(), &errors.join("; "));
            }
        }
        Ok(Self { key: key.to_owned(), operator, values })
    }

    fn equals(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), operator: Operator::Equals, values: vec![value.to_owned()] }
    }

    /// Against the value of this requirement's key, if the object has it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let contains = |value: &str| self.values.iter().any(|wanted| wanted == value);
        let compare = |wanted: std::cmp::Ordering| {
            let bound = self.values.first().and_then(|bound| bound.parse::<i64>().ok());
            let value = value.and_then(|value| value.parse::<i64>().ok());
            matches!((value, bound), (Some(value), Some(bound)) if value.cmp(&bound) == wanted)
        };
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(contains),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(contains),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compare(std::cmp::Ordering::Greater),
            Operator::LessThan => compare(std::cmp::Ordering::Less),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn check_key(key: &str, path: &str) -> Result<(), String> {
    let errors = names::is_qualified_name(key);
    if errors.is_empty() { Ok(()) } else { Err(FieldError::invalid(path, key, errors.join("; ")).to_string()) }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token {
    /// A word, `in` and `notin` included: whether they are operators depends on where they stand.
    Word,
    Symbol,
    End,
}

fn lex(text: &str) -> Vec<(Token, &str)> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let symbol = ["==", "!=", "=", "!", "(", ")", ",", "<", ">"].iter().find(|symbol| rest.starts_with(**symbol));
        let length = match symbol {
            Some(symbol) => symbol.len(),
            None => rest.find(|c: char| c.is_ascii_whitespace() || "=!(),<>".contains(c)).unwrap_or(rest.len()),
        };
        tokens.push((if symbol.is_some() { Token::Symbol } else { Token::Word }, &rest[..length]));
        rest = rest[length..].trim_start();
    }
    tokens.push((Token::End, ""));
    tokens
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    position: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> (Token, &'a str) {
        self.tokens[self.position]
    }

    fn next(&mut self) -> (Token, &'a str) {
        let token = self.peek();
        self.position = (self.position + 1).min(self.tokens.len() - 1);
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::End, _) => return Ok(requirements),
                (Token::Word, _) | (_, "!") => {}
                (_, found) => return Err(format!("found '{found}', expected: !, identifier, or 'end of string'")),
            }
            requirements.push(self.requirement().map_err(|error| format!("unable to parse requirement: {error}"))?);
            match self.next() {
                (Token::End, _) => return Ok(requirements),
                (_, ",") => {}
                (_, found) => return Err(format!("found '{found}', expected: ',' or 'end of string'")),
            }
            match self.peek() {
                (Token::Word, _) | (_, "!") => {}
                (_, found) => return Err(format!("found '{found}', expected: identifier after ','")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let negated = token.1 == "!";
        if negated {
            token = self.next();
        }
        let (Token::Word, key) = token else { return Err(format!("found '{}', expected: identifier", token.1)) };
        check_key(key, "<nil>")?;
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), (Token::End, _) | (Token::Symbol, ",")) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = match self.next().1 {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            "=" | "==" => Operator::Equals,
            "!=" => Operator::NotEquals,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            found => return Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            (Token::End, _) | (_, ",") => Ok(String::new()),
            (Token::Word, _) => Ok(self.next().1.to_owned()),
            (_, found) => Err(format!("found '{found}', expected: identifier")),
        }
    }

    /// `(a, b)`; an item left out is the empty value.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let (_, found) = self.next();
        if found != "(" {
            return Err(format!("found '{found}' expected: '('"));
        }
        let mut values = Vec::new();
        if self.peek() == (Token::Symbol, ")") {
            self.next();
            return Ok(values);
        }
        loop {
            match self.peek() {
                (Token::Word, word) => {
                    self.next();
                    values.push(word.to_owned());
                }
                (_, "," | ")") => values.push(String::new()),
                (_, found) => return Err(format!("found '{found}', expected: ',', ')' or identifier")),
            }
            match self.next() {
                (_, ")") => return Ok(values),
                (_, ",") => {}
                (_, found) => return Err(format!("found '{found}', expected: ',' or ')'")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn selectors_match() {
        for (selector, yes, no) in [
            ("", &["", "a=b"][..], &[][..]),
            ("a=b", &["a=b", "a=b,c=d"], &["", "a=c"]),
            ("a==b", &["a=b"], &["a=c"]),
            ("a!=b", &["", "a=c"], &["a=b"]),
            ("a", &["a="], &["b=c"]),
            ("!a", &["", "b=c"], &["a=b"]),
            ("a in (b, c)", &["a=b", "a=c"], &["", "a=d"]),
            ("a notin (b,c)", &["", "a=d"], &["a=b"]),
            ("a in (,b)", &["a=", "a=b"], &["", "a=c"]),
            ("a=", &["a="], &["a=b", ""]),
            ("a>5", &["a=6"], &["a=5", "a=x", ""]),
            ("a<5,b", &["a=4,b="], &["a=4"]),
            ("in in (notin)", &["in=notin"], &["in=in"]),
            ("example.com/a=b", &["example.com/a=b"], &[""]),
        ] {
            let parsed = Selector::parse(selector).unwrap();
            assert_eq!(Selector::parse(&parsed.to_string()).unwrap(), parsed);
            for map in yes {
                assert!(parsed.matches_map(&labels(map)), "{selector} on {map}");
            }
            for map in no {
                assert!(!parsed.matches_map(&labels(map)), "{selector} on {map}");
            }
        }
    }

    #[test]
    fn errors_read_as_upstream() {
        for (selector, start) in [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b,", "found '', expected: identifier after ','"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a/b/c", r#"unable to parse requirement: <nil>: Invalid value: "a/b/c": a qualified name must"#),
            ("a=-", r#"unable to parse requirement: values[0][a]: Invalid value: "-": a valid label must be"#),
            ("a in ()", "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators"),
            ("a>x", r#"unable to parse requirement: values[0]: Invalid value: "x": for 'Gt', 'Lt' operators"#),
        ] {
            let error = Selector::parse(selector).unwrap_err();
            assert!(error.starts_with(start), "{selector}: {error}");
        }
    }

    #[test]
    fn label_selectors_convert() {
        let selector = json!({"matchLabels": {"b": "c"}, "matchExpressions": [
            {"key": "a", "operator": "NotIn", "values": ["y", "x"]}, {"key": "d", "operator": "Exists"}]});
        assert_eq!(Selector::from_label_selector(&selector).unwrap().to_string(), "a notin (x,y),b=c,d");
        assert!(Selector::from_label_selector(&Value::Null).unwrap().is_nothing());
        assert!(Selector::from_label_selector(&json!({})).unwrap().is_everything());
        let wrong = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
        let error = Selector::from_label_selector(&wrong).unwrap_err();
        assert_eq!(error, r#""Near" is not a valid label selector operator"#);
    }
}
