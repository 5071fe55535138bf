//! Small verbs on JSON values for defaulting. "Unset" means what it means to Go's decoder: absent,
//! null, or the zero value where the field is not a pointer.

use serde_json::{Map, Value};

pub(crate) trait Defaulting {
    /// Sets an absent, null or (for text) empty field.
    fn or(&mut self, key: &str, value: impl Into<Value>) -> &mut Self;
    /// Sets a number that is absent or zero.
    fn or_zero(&mut self, key: &str, value: i64) -> &mut Self;
    /// The object under a key, if there is one.
    fn at(&mut self, key: &str) -> Option<&mut Value>;
    /// The object under a key, made if there is none.
    fn make(&mut self, key: &str) -> &mut Value;
    /// Calls `f` with every element of the array under a key.
    fn each(&mut self, key: &str, f: impl FnMut(&mut Value));
    fn remove(&mut self, key: &str) -> Option<Value>;
    fn text(&self, key: &str) -> &str;
    fn has(&self, key: &str) -> bool;
}

impl Defaulting for Value {
    fn or(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let Some(map) = self.as_object_mut() else { return self };
        match map.get(key) {
            None | Some(Value::Null) => drop(map.insert(key.to_owned(), value.into())),
            Some(Value::String(text)) if text.is_empty() => {
                drop(map.insert(key.to_owned(), value.into()));
            }
            Some(_) => {}
        }
        self
    }

    fn or_zero(&mut self, key: &str, value: i64) -> &mut Self {
        if self.get(key).and_then(Value::as_i64) == Some(0) {
            self[key] = value.into();
        }
        self.or(key, value)
    }

    fn at(&mut self, key: &str) -> Option<&mut Value> {
        self.get_mut(key).filter(|value| value.is_object())
    }

    fn make(&mut self, key: &str) -> &mut Value {
        if !self.is_object() {
            *self = Value::Object(Map::new());
        }
        let slot = &mut self[key];
        if !slot.is_object() {
            *slot = Value::Object(Map::new());
        }
        slot
    }

    fn each(&mut self, key: &str, f: impl FnMut(&mut Value)) {
        if let Some(Value::Array(items)) = self.get_mut(key) {
            items.iter_mut().filter(|item| item.is_object()).for_each(f);
        }
    }

    fn remove(&mut self, key: &str) -> Option<Value> {
        self.as_object_mut()?.remove(key)
    }

    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !value.is_null())
    }
}
