//! Makes the compact table of built-in types (ADR 001) from the reference facts: OpenAPI for names, required
//! fields, merge keys and list types; protobuf definitions for numbers and types; `schema/go.txt` for how Go holds
//! each field and for constant defaults.
//!
//! The output is committed, the reference is not; the same input gives the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

const GO_FACTS: &str = include_str!("schema/go.txt");
const OUTPUT: &str = "crates/resources/src/schema/v1_36.txt";

/// Types on the wire that OpenAPI does not list, with whether they carry apiVersion and kind.
const BEYOND_OPENAPI: [(&str, bool); 8] = [
    ("io.k8s.api.core.v1.RangeAllocation", true),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.CreateOptions", true),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.GetOptions", true),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ListOptions", true),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata", true),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList", true),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.PatchOptions", true),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.UpdateOptions", true),
];

/// `cargo xtask schema --reference DIR [--output FILE]`
pub fn run(args: impl IntoIterator<Item = String>) -> Result<()> {
    let (mut reference, mut output) = (None, PathBuf::from(OUTPUT));
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        match &*arg {
            "--reference" => reference = Some(PathBuf::from(value)),
            "--output" => output = PathBuf::from(value),
            _ => bail!("unknown argument {arg}; use --reference DIR [--output FILE]"),
        }
    }
    let reference = reference.context("--reference DIR is required")?;
    let read = |name: &str| -> Result<Value> {
        let path = reference.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    };
    let facts = Facts::new(&read("openapi-v1.36-facts.json")?, &read("protobuf-v1.36-fields.json")?)?;
    fs::write(&output, facts.table()?).with_context(|| format!("write {}", output.display()))
}

#[derive(Default)]
struct Facts {
    openapi: BTreeMap<String, Value>,
    /// By OpenAPI's type names.
    protobuf: HashMap<String, Value>,
    go: HashMap<String, GoFacts>,
}

#[derive(Default)]
struct GoFacts {
    /// `*`, `+` or `-` by field.
    held: HashMap<String, char>,
    defaults: HashMap<String, String>,
}

impl Facts {
    fn new(openapi: &Value, protobuf: &Value) -> Result<Self> {
        let mut facts = Self::default();
        for (name, definition) in openapi["definitions"].as_object().context("definitions")? {
            facts.openapi.insert(name.clone(), definition.clone());
        }
        for (name, fields) in protobuf["messages"].as_object().context("messages")? {
            facts.protobuf.insert(openapi_name(name), fields.clone());
        }
        for line in GO_FACTS.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let name = ["io.k8s.api.", "io.k8s."].iter().map(|prefix| format!("{prefix}{name}"));
            let name = name.into_iter().find(|name| facts.openapi.contains_key(name)).context(line)?;
            facts.go.insert(name, GoFacts::parse(words));
        }
        Ok(facts)
    }

    fn table(&self) -> Result<String> {
        let beyond = BEYOND_OPENAPI.map(|(name, _)| name.to_owned());
        let names: BTreeSet<&String> = self.openapi.keys().chain(&beyond).filter(|name| self.is_struct(name)).collect();
        let packages: BTreeSet<&str> = names.iter().map(|name| package(name)).collect();
        let aliases = aliases(&packages);
        let (mut table, mut current) = (String::new(), "");
        for name in names {
            if package(name) != current {
                current = package(name);
                writeln!(table, "@{current}")?;
            }
            self.type_(&mut table, name, &aliases).with_context(|| name.clone())?;
        }
        let mut head = "# Made by `cargo xtask schema`; see docs/adr/001-schema-table.md.\n".to_owned();
        for (package, alias) in aliases.iter().filter(|(_, alias)| table.contains(&format!("{alias}."))) {
            writeln!(head, "%{alias} {package}")?;
        }
        Ok(head + &table)
    }

    /// Whether a type has fields of its own in JSON, as opposed to a scalar or union with a kind letter.
    fn is_struct(&self, name: &str) -> bool {
        self.protobuf.contains_key(name) && scalar(name).is_none() && union(name).is_none()
    }

    fn type_(&self, table: &mut String, name: &str, aliases: &BTreeMap<&str, String>) -> Result<()> {
        let definition = self.openapi.get(name).unwrap_or(&Value::Null);
        let mut fields = BTreeMap::new();
        self.collect(name, name, "", &mut fields)?;
        let properties = definition["properties"].as_object();
        let listed = BEYOND_OPENAPI.iter().any(|(beyond, object)| *beyond == name && *object);
        let object = listed
            || properties.is_some_and(|properties| properties.contains_key("kind") && !fields.contains_key("kind"));
        for property in properties.into_iter().flatten().map(|(property, _)| property) {
            let in_envelope = object && matches!(&**property, "apiVersion" | "kind");
            if !in_envelope && !fields.contains_key(property) {
                bail!("property {property} has no protobuf field");
            }
        }
        let atomic = definition["x-kubernetes-map-type"] == "atomic";
        let flags = format!("{}{}", if object { "o" } else { "" }, if atomic { "a" } else { "" });
        writeln!(table, "{}", format!("{} {flags}", short(name)).trim_end())?;
        let go = self.go.get(name);
        if let Some(stray) =
            go.and_then(|go| go.held.keys().chain(go.defaults.keys()).find(|f| !fields.contains_key(*f)))
        {
            bail!("go.txt names {stray}, which is no field");
        }
        for (json_name, field) in &fields {
            let property = &definition["properties"][json_name];
            let kind = self.kind(&field.type_, &field.package, package(name), aliases)?;
            let required = definition["required"].as_array().is_some_and(|names| names.iter().any(|n| n == json_name));
            let held = field.held(json_name, go, &kind, required, object);
            let mut line = format!(" {json_name} {} {kind}", field.number);
            for (present, word) in [(required, " !"), (held == '*', " *"), (held == '+', " +")] {
                line.push_str(if present { word } else { "" });
            }
            line.push_str(&merge_words(property)?);
            let default = go.and_then(|go| go.defaults.get(json_name).cloned()).or_else(|| field.default());
            // A zero that Go drops is no default.
            if let Some(default) = default.filter(|value| held == '*' || !matches!(&**value, "0" | "false" | "\"\"")) {
                write!(line, " ={default}")?;
            }
            writeln!(table, "{line}")?;
        }
        Ok(())
    }

    /// Fields of a message by JSON name; embedded messages are flattened, their numbers put in front.
    fn collect(
        &self,
        owner: &str,
        message: &str,
        outer: &str,
        fields: &mut BTreeMap<String, ProtoField>,
    ) -> Result<()> {
        let Some(messages) = self.protobuf.get(message) else { return Ok(()) };
        let properties = &self.openapi.get(owner).unwrap_or(&Value::Null)["properties"];
        for (proto_name, facts) in messages.as_object().context("a message is an object")? {
            let json_name = json_name(proto_name, properties);
            let number = format!("{outer}{}", facts[0]);
            let type_ = facts[1].as_str().context("type")?.to_owned();
            if !properties.is_null() && properties.get(&json_name).is_none() {
                let embedded = resolve(&type_, package(message));
                if !self.protobuf.contains_key(&embedded) {
                    bail!("{proto_name} is neither a property nor embedded");
                }
                self.collect(owner, &embedded, &format!("{number}/"), fields)?;
                continue;
            }
            let tags = facts[2].as_array().into_iter().flatten().filter_map(|tag| tag.as_str().map(str::to_owned));
            let field = ProtoField { number, type_, package: package(message).to_owned(), tags: tags.collect() };
            fields.insert(json_name, field);
        }
        Ok(())
    }

    fn kind(&self, type_: &str, from: &str, here: &str, aliases: &BTreeMap<&str, String>) -> Result<String> {
        if let Some(inner) = type_.strip_prefix("repeated ") {
            return Ok(format!("[]{}", self.kind(inner, from, here, aliases)?));
        }
        if let Some(inner) = type_.strip_prefix("map<string,") {
            return Ok(format!("{{}}{}", self.kind(inner.trim_end_matches('>'), from, here, aliases)?));
        }
        let primitive = match type_ {
            "string" => "s",
            "bool" => "b",
            "int32" => "i",
            "int64" => "l",
            "double" => "d",
            "bytes" => "y",
            _ => "",
        };
        if !primitive.is_empty() {
            return Ok(primitive.into());
        }
        let name = resolve(type_, from);
        if let Some(letter) = scalar(&name) {
            return Ok(letter.into());
        }
        if let Some((schema, alternative)) = union(&name) {
            return Ok(format!("{schema}|{alternative}"));
        }
        let message = self.protobuf.get(&name).with_context(|| format!("unknown message {name}"))?;
        if !self.openapi.contains_key(&name)
            && let Some(items) = message["items"][1].as_str().and_then(|items| items.strip_prefix("repeated "))
        {
            return Ok(format!("<>{}", self.kind(items, package(&name), here, aliases)?));
        }
        if package(&name) == here {
            return Ok(short(&name).into());
        }
        let alias = aliases.get(package(&name)).with_context(|| format!("no alias for {name}"))?;
        Ok(format!("{alias}.{}", short(&name)))
    }
}

impl GoFacts {
    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let mut facts = Self::default();
        for word in words {
            match word.split_once('=') {
                Some((field, default)) => drop(facts.defaults.insert(field.into(), default.into())),
                None => {
                    let (field, held) = word.split_at(word.len() - 1);
                    facts.held.insert(field.into(), held.chars().next().unwrap_or('-'));
                }
            }
        }
        facts
    }
}

struct ProtoField {
    number: String,
    type_: String,
    /// Of the message that declares it.
    package: String,
    tags: Vec<String>,
}

impl ProtoField {
    /// How Go holds the field: the listed exception, or the rule of thumb.
    fn held(&self, json_name: &str, go: Option<&GoFacts>, kind: &str, required: bool, object: bool) -> char {
        if let Some(held) = go.and_then(|go| go.held.get(json_name)) {
            return *held;
        }
        let metadata = kind.ends_with(".ObjectMeta") || kind.ends_with(".ListMeta");
        let message = kind.starts_with(char::is_uppercase) || kind.contains('.') || "qxtuDrjf".contains(kind);
        let collection = kind.starts_with(['[', '{', '<']);
        match message && !collection {
            true if metadata || object && matches!(json_name, "spec" | "status") => '+',
            true => '*',
            false if required => '+',
            false => '-',
        }
    }

    fn default(&self) -> Option<String> {
        let default = self.tags.iter().find_map(|tag| tag.strip_prefix("default="))?;
        Some(match default {
            "ref(AzureDataDiskCachingReadWrite)" => r#""ReadWrite""#.into(),
            "ref(AzureSharedBlobDisk)" => r#""Shared""#.into(),
            literal => literal.into(),
        })
    }
}

fn merge_words(property: &Value) -> Result<String> {
    let mut words = String::new();
    if let Some(strategy) = property["x-kubernetes-patch-strategy"].as_str() {
        write!(words, " p={strategy}")?;
        if let Some(key) = property["x-kubernetes-patch-merge-key"].as_str() {
            write!(words, ":{key}")?;
        }
    }
    match property["x-kubernetes-list-type"].as_str() {
        Some("set") => words.push_str(" l=set"),
        Some("map") => {
            let keys = property["x-kubernetes-list-map-keys"].as_array().context("a map list needs keys")?;
            let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
            write!(words, " l=map:{}", keys.join(","))?;
        }
        Some("atomic") | None => {}
        Some(other) => bail!("unknown list type {other}"),
    }
    if property["x-kubernetes-map-type"] == "atomic" {
        words.push_str(" a");
    }
    Ok(words)
}

/// The kind letters of types with a JSON form of their own.
fn scalar(name: &str) -> Option<&'static str> {
    Some(match name.strip_prefix("io.k8s.")? {
        "apimachinery.pkg.api.resource.Quantity" => "q",
        "apimachinery.pkg.util.intstr.IntOrString" => "x",
        "apimachinery.pkg.apis.meta.v1.Time" => "t",
        "apimachinery.pkg.apis.meta.v1.MicroTime" => "u",
        "apimachinery.pkg.apis.meta.v1.Duration" => "D",
        "apimachinery.pkg.apis.meta.v1.FieldsV1" => "f",
        "apimachinery.pkg.runtime.RawExtension" => "r",
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON" => "j",
        _ => return None,
    })
}

fn union(name: &str) -> Option<(&str, &'static str)> {
    let (schema, alternative) = short(name).split_once("Or")?;
    let alternative = match alternative {
        "Array" => "structs",
        "Bool" => "bool",
        "StringArray" => "strings",
        _ => return None,
    };
    (schema == "JSONSchemaProps").then_some((schema, alternative))
}

/// Protobuf names follow Go's identifiers where JSON does not.
fn json_name(proto_name: &str, properties: &Value) -> String {
    let dashed: String = proto_name
        .chars()
        .flat_map(|c| {
            let dash = c.is_ascii_uppercase().then_some('-');
            dash.into_iter().chain([c.to_ascii_lowercase()])
        })
        .collect();
    let lower_first = |text: &str| text[..1].to_lowercase() + &text[1..];
    let candidates = [
        format!("${proto_name}"),
        proto_name.to_owned(),
        lower_first(proto_name),
        dashed,
        proto_name.to_lowercase(),
        proto_name.replacen("aPI", "api", 1),
    ];
    candidates.into_iter().find(|name| properties.get(name).is_some()).unwrap_or_else(|| proto_name.to_owned())
}

/// `k8s.io.api.core.v1.Pod` is `io.k8s.api.core.v1.Pod` in OpenAPI.
fn openapi_name(name: &str) -> String {
    format!("io.k8s.{}", name.trim_start_matches("k8s.io."))
}

/// A message type as written in a message of `package`.
fn resolve(type_: &str, package: &str) -> String {
    match type_.strip_prefix('.') {
        Some(rest) => format!("io.k8s.{}", rest.trim_start_matches("k8s.io.")),
        None => format!("{package}.{type_}"),
    }
}

fn package(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(package, _)| package)
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

/// Short names for packages: `m` and `c` for the common two, else group and version run together.
fn aliases<'a>(packages: &BTreeSet<&'a str>) -> BTreeMap<&'a str, String> {
    packages
        .iter()
        .map(|package| {
            let alias = match *package {
                "io.k8s.apimachinery.pkg.apis.meta.v1" => "m".to_owned(),
                "io.k8s.api.core.v1" => "c".to_owned(),
                other => other.rsplit('.').take(2).collect::<Vec<_>>().into_iter().rev().collect(),
            };
            (*package, alias)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(openapi: Value, protobuf: Value) -> Facts {
        Facts {
            openapi: serde_json::from_value(openapi).unwrap(),
            protobuf: serde_json::from_value(protobuf).unwrap(),
            ..Facts::default()
        }
    }

    #[test]
    fn embedded_messages_are_flattened_and_facts_kept() {
        let openapi = json!({
            "io.k8s.api.core.v1.Volume": {"properties": {"name": {}, "uid": {}, "dirs": {
                "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "name",
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}}, "required": ["name"]},
            "io.k8s.api.core.v1.Dir": {"properties": {"name": {}, "size": {}}},
        });
        let protobuf = json!({
            "io.k8s.api.core.v1.Volume": {"Name": [1, "string"], "uID": [3, "string"], "source": [2, "Source"]},
            "io.k8s.api.core.v1.Source": {"dirs": [4, "repeated Dir"]},
            "io.k8s.api.core.v1.Dir": {"name": [1, "string"],
                "size": [2, ".apimachinery.pkg.api.resource.Quantity", ["default=\"1\""]]},
        });
        let expected = "@io.k8s.api.core.v1\nDir\n name 1 s\n size 2 q * =\"1\"\n\
            Volume\n dirs 2/4 []Dir p=merge:name l=map:name\n name 1 s ! +\n uid 3 s\n";
        let table = facts(openapi, protobuf).table().unwrap();
        assert_eq!(table.split_once('\n').unwrap().1, expected);
    }

    #[test]
    fn a_property_without_number_is_an_error() {
        let openapi = json!({"io.k8s.api.core.v1.A": {"properties": {"x": {}}}});
        let error = facts(openapi, json!({"io.k8s.api.core.v1.A": {}})).table().unwrap_err();
        assert_eq!(format!("{error:#}"), "io.k8s.api.core.v1.A: property x has no protobuf field");
    }
}
