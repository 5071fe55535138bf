//! Binding: assigns a pod to a node. Posted by schedulers, never stored.

use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;

use crate::facts::Facts;
use crate::resource::Kind;
use crate::validate::{Errors, text};

pub struct Binding;

impl Kind for Binding {
    type Object = api::Binding;

    const FACTS: Facts =
        Facts::namespaced("", "v1", "Binding", "bindings", "binding", "io.k8s.api.core.v1.Binding").posted();

    fn validate(object: &api::Binding, errors: &mut Errors) {
        let path = Path::new("target");
        errors.optional_one_of(&path.child("kind"), object.target.kind.as_deref(), &["Node"]);
        errors.needed(&path.child("name"), text(&object.target.name));
    }
}
