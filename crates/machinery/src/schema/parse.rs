//! Reads the compact table of types. Its grammar, by example:
//!
//! ```text
//! %m io.k8s.apimachinery.pkg.apis.meta.v1     an alias for a package
//! @io.k8s.api.core.v1                         the package of the types that follow
//! Pod o                                       a type; o: apiVersion and kind, a: atomic
//!  spec 2 PodSpec +                           a field: JSON name, protobuf number, kind, attributes
//!  metadata 1 m.ObjectMeta +
//!  containers 2 []Container ! p=merge:name l=map:name
//!  name 1/1 s =""                             embedded messages before the slash; a default ends the line
//! ```
//!
//! Kinds: `s b i l d y q x t u D r j f` for the scalars in the order of [`FieldKind`], `[]`, `<>` and `{}` for
//! lists, wrapped lists and maps, `Name|structs`, `Name|bool` and `Name|strings` for unions.
//! Attributes: `!` required, `*` a pointer, `+` always written, `a` atomic, `p=` patch strategy, `l=` list type.
//!
//! Strings are interned: a few hundred names make up thousands of fields.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Alternative, Field, FieldKind, ListType, Merge, Presence, Type, TypeId, Types};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schema table, line {line}: {problem}")]
pub struct ParseError {
    pub line: usize,
    pub problem: String,
}

pub(super) fn parse(table: &str) -> Result<Types, ParseError> {
    let mut parser = Parser::default();
    // Names first, since types refer to types further down.
    parser.pass(table, Parser::declare)?;
    parser.pass(table, Parser::define)?;
    for type_ in &mut parser.types.types {
        type_.fields.sort_by(|a, b| a.json_name.cmp(&b.json_name));
    }
    Ok(parser.types)
}

#[derive(Default)]
struct Parser<'a> {
    types: Types,
    package: &'a str,
    aliases: HashMap<&'a str, &'a str>,
    strings: HashSet<Arc<str>>,
    current: Option<TypeId>,
}

impl<'a> Parser<'a> {
    fn pass(&mut self, table: &'a str, line: fn(&mut Self, &'a str) -> Result<(), String>) -> Result<(), ParseError> {
        for (number, text) in table.lines().enumerate() {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            line(self, text).map_err(|problem| ParseError { line: number + 1, problem })?;
        }
        Ok(())
    }

    fn declare(&mut self, line: &'a str) -> Result<(), String> {
        match line.as_bytes()[0] {
            b' ' => {}
            b'@' => self.package = &line[1..],
            b'%' => {
                let (alias, package) = line[1..].split_once(' ').ok_or("an alias needs a package")?;
                self.aliases.insert(alias, package);
            }
            _ => {
                let (name, flags) = line.split_once(' ').unwrap_or((line, ""));
                let mut type_ = Type::new(format!("{}.{name}", self.package));
                (type_.object, type_.atomic) = (flags.contains('o'), flags.contains('a'));
                if self.types.index.contains_key(&type_.name) {
                    return Err(format!("{name} is declared twice"));
                }
                self.types.insert(type_);
            }
        }
        Ok(())
    }

    fn define(&mut self, line: &'a str) -> Result<(), String> {
        match line.as_bytes()[0] {
            b' ' => {
                let id = self.current.ok_or("a field stands before any type")?;
                let field = self.field(&line[1..])?;
                self.types.types[id.0 as usize].fields.push(field);
            }
            b'@' => self.package = &line[1..],
            b'%' => {}
            _ => {
                let name = line.split(' ').next().unwrap_or_default();
                self.current = self.types.id(&format!("{}.{name}", self.package));
            }
        }
        Ok(())
    }

    fn field(&mut self, line: &'a str) -> Result<Field, String> {
        let mut words = line.splitn(4, ' ');
        let (Some(name), Some(numbers), Some(kind)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("a field needs name, number and kind: {line}"));
        };
        let numbers: Vec<u32> =
            numbers.split('/').map(str::parse).collect::<Result<_, _>>().map_err(|_| format!("bad number: {line}"))?;
        let mut field = Field::new(self.intern(name), self.kind(kind)?);
        let (number, outer) = numbers.split_last().expect("split yields at least one");
        (field.number, field.outer, field.presence) = (*number, outer.into(), Presence::NonZero);
        let mut rest = words.next().unwrap_or_default();
        while !rest.is_empty() {
            if let Some(default) = rest.strip_prefix('=') {
                field.default = Some(serde_json::from_str(default).map_err(|error| format!("bad default: {error}"))?);
                break;
            }
            let (attribute, tail) = rest.split_once(' ').unwrap_or((rest, ""));
            self.attribute(&mut field, attribute)?;
            rest = tail;
        }
        Ok(field)
    }

    fn attribute(&mut self, field: &mut Field, attribute: &str) -> Result<(), String> {
        match (attribute, attribute.split_once('=')) {
            ("!", _) => field.required = true,
            ("*", _) => field.presence = Presence::Set,
            ("+", _) => field.presence = Presence::Always,
            ("a", _) => field.atomic = true,
            (_, Some(("p", strategy))) => field.merge = self.merge(strategy)?,
            (_, Some(("l", "set"))) => field.list = ListType::Set,
            (_, Some(("l", list))) => {
                let keys = list.strip_prefix("map:").ok_or_else(|| format!("unknown list type {list}"))?;
                field.list = ListType::Map(keys.split(',').map(|key| self.intern(key)).collect());
            }
            _ => return Err(format!("unknown attribute {attribute}")),
        }
        Ok(())
    }

    fn merge(&mut self, text: &str) -> Result<Merge, String> {
        let (strategies, key) = text.split_once(':').map_or((text, None), |(text, key)| (text, Some(key)));
        let mut merge = Merge { key: key.map(|key| self.intern(key)), ..Merge::default() };
        for strategy in strategies.split(',') {
            match strategy {
                "merge" => merge.merge = true,
                "retainKeys" => merge.retain_keys = true,
                "replace" => merge.replace = true,
                _ => return Err(format!("unknown patch strategy {strategy}")),
            }
        }
        Ok(merge)
    }

    fn kind(&self, text: &str) -> Result<FieldKind, String> {
        for (prefix, make) in [
            ("[]", FieldKind::List as fn(Box<FieldKind>) -> FieldKind),
            ("<>", FieldKind::Wrapped),
            ("{}", FieldKind::Map),
        ] {
            if let Some(inner) = text.strip_prefix(prefix) {
                return Ok(make(Box::new(self.kind(inner)?)));
            }
        }
        Ok(match text {
            "s" => FieldKind::String,
            "b" => FieldKind::Bool,
            "i" => FieldKind::Int32,
            "l" => FieldKind::Int64,
            "d" => FieldKind::Double,
            "y" => FieldKind::Bytes,
            "q" => FieldKind::Quantity,
            "x" => FieldKind::IntOrString,
            "t" => FieldKind::Time,
            "u" => FieldKind::MicroTime,
            "D" => FieldKind::Duration,
            "r" => FieldKind::Raw,
            "j" => FieldKind::Json,
            "f" => FieldKind::FieldsV1,
            name => match name.split_once('|') {
                Some((name, "structs")) => FieldKind::Union(self.reference(name)?, Alternative::Structs),
                Some((name, "bool")) => FieldKind::Union(self.reference(name)?, Alternative::Bool),
                Some((name, "strings")) => FieldKind::Union(self.reference(name)?, Alternative::Strings),
                _ => FieldKind::Struct(self.reference(name)?),
            },
        })
    }

    fn reference(&self, name: &str) -> Result<TypeId, String> {
        let full = match name.split_once('.') {
            Some((alias, name)) => {
                let package = self.aliases.get(alias).ok_or_else(|| format!("unknown package {alias}"))?;
                format!("{package}.{name}")
            }
            None => format!("{}.{name}", self.package),
        };
        self.types.id(&full).ok_or_else(|| format!("unknown type {full}"))
    }

    fn intern(&mut self, text: &str) -> Arc<str> {
        match self.strings.get(text) {
            Some(text) => text.clone(),
            None => {
                let text: Arc<str> = text.into();
                self.strings.insert(text.clone());
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_carry_their_facts() {
        let types = Types::parse(super::super::testing::TABLE).unwrap();
        let spec = types.get("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert_eq!((containers.number, containers.required, containers.merge.key.as_deref()), (2, true, Some("name")));
        assert_eq!(containers.list, ListType::Map(["name".into()].into()));
        assert_eq!(containers.kind.type_id(), types.id("io.k8s.api.core.v1.Container"));
        let volume = types.get("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(*volume.field("emptyDir").unwrap().outer, [2]);
        assert!(types.get("io.k8s.api.core.v1.Pod").unwrap().object);
        assert_eq!(types.get("io.k8s.api.core.v1.Pod").unwrap().go_name(), "v1.Pod");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (table, problem) in [
            ("@p\nA\n x 1 B", "schema table, line 3: unknown type p.B"),
            ("@p\nA\n x 1", "schema table, line 3: a field needs name, number and kind: x 1"),
            ("@p\nA\n x 1 s ?", "schema table, line 3: unknown attribute ?"),
            ("@p\nA\nA", "schema table, line 3: A is declared twice"),
            (" x 1 s", "schema table, line 1: a field stands before any type"),
        ] {
            assert_eq!(Types::parse(table).unwrap_err().to_string(), problem);
        }
    }
}
