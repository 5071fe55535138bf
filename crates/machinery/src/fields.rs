//! Field selectors (`metadata.name=a,status.phase!=Running`): equality on fields a resource offers.
//!
//! Which fields a resource offers, and how to read them, the caller says.

use std::fmt;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldRequirement {
    pub field: String,
    /// `=` or `==` if true, `!=` if not.
    pub equal: bool,
    pub value: String,
}

impl FieldSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    /// The selector of one exact value.
    pub fn one(field: &str, value: &str) -> Self {
        Self { requirements: vec![FieldRequirement { field: field.into(), equal: true, value: value.into() }] }
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for part in split(text) {
            let requirement = parse_requirement(part)
                .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
            requirements.push(FieldRequirement { value: unescape(&requirement.value)?, ..requirement });
        }
        Ok(Self { requirements })
    }

    /// Whether fields, read by name, satisfy every requirement; an absent field reads as empty.
    pub fn matches(&self, field: impl Fn(&str) -> Option<String>) -> bool {
        self.requirements.iter().all(|r| (field(&r.field).unwrap_or_default() == r.value) == r.equal)
    }

    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// The value a field must have, if the selector pins it.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| &*r.value)
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            let (comma, operator) = (if index > 0 { "," } else { "" }, if requirement.equal { "=" } else { "!=" });
            write!(f, "{comma}{}{operator}", requirement.field)?;
            for c in requirement.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    let parts = text.split(move |c| {
        let splits = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        splits
    });
    parts.filter(|part| !part.is_empty())
}

fn parse_requirement(part: &str) -> Option<FieldRequirement> {
    let at = part.find(['=', '!'])?;
    let (field, rest) = part.split_at(at);
    let (equal, value) = match rest.strip_prefix("!=") {
        Some(value) => (false, value),
        None => (true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?),
    };
    Some(FieldRequirement { field: field.to_owned(), equal, value: value.to_owned() })
}

fn unescape(value: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                next => {
                    let sequence: String = ['\\'].into_iter().chain(next).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_parse_and_match() {
        let selector = FieldSelector::parse(r"metadata.name=a,status.phase!=Running,x==b\,c").unwrap();
        assert_eq!(selector.exact("metadata.name"), Some("a"));
        assert_eq!(selector.exact("status.phase"), None);
        assert_eq!(selector.to_string(), r"metadata.name=a,status.phase!=Running,x=b\,c");
        let read = |phase: &'static str| {
            move |field: &str| {
                Some(
                    match field {
                        "metadata.name" => "a",
                        "x" => "b,c",
                        _ => phase,
                    }
                    .to_owned(),
                )
            }
        };
        assert!(selector.matches(read("Pending")));
        assert!(!selector.matches(read("Running")));
        assert!(FieldSelector::parse("").unwrap().is_everything());
        assert!(FieldSelector::parse("a!=b").unwrap().matches(|_| None));
    }

    #[test]
    fn errors_read_as_upstream() {
        for (text, expected) in [
            ("abc", "invalid selector: 'abc'; can't understand 'abc'"),
            (r"a=\x", r"invalid field selector: invalid escape sequence: \x"),
            ("a=b=c", "invalid field selector: unescaped character in value: ="),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err(), expected);
        }
    }
}
