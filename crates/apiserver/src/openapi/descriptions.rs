//! The prose of the built-in types, as `build.rs` packed it.

use std::collections::HashMap;

use flate2::read::DeflateDecoder;

/// What is said of a type: of itself, and of its fields by JSON name.
type Prose = (Option<String>, HashMap<String, Option<String>>);

pub struct Descriptions(HashMap<String, Prose>);

impl Descriptions {
    /// Unpacked per call: they are large, and wanted only while a document is built.
    pub fn unpack() -> Descriptions {
        let packed: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions"));
        Descriptions(serde_json::from_reader(DeflateDecoder::new(packed)).expect("build.rs packs valid JSON"))
    }

    pub fn of_type(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.0.as_deref()
    }

    pub fn of_field(&self, name: &str, field: &str) -> Option<&str> {
        self.0.get(name)?.1.get(field)?.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::Descriptions;

    #[test]
    fn types_and_fields_are_described() {
        let descriptions = Descriptions::unpack();
        let (pod, container) = ("io.k8s.api.core.v1.Pod", "io.k8s.api.core.v1.Container");
        assert!(descriptions.of_type(pod).is_some_and(|prose| prose.starts_with("Pod is a collection of containers")));
        assert!(descriptions.of_field(container, "image").is_some_and(|prose| prose.contains("image name")));
        assert_eq!(descriptions.of_field(container, "nothing"), None);
    }
}
