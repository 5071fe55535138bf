//! `node.k8s.io/v1`: RuntimeClass, which container runtime handler a pod runs under.

use jiff::Timestamp;
use k8s_openapi::api::node::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::pod;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, meta, quantity};

pub struct RuntimeClass;

impl Kind for RuntimeClass {
    type Object = api::RuntimeClass;

    const FACTS: Facts = Facts::cluster(
        "node.k8s.io",
        "v1",
        "RuntimeClass",
        "runtimeclasses",
        "runtimeclass",
        "io.k8s.api.node.v1.RuntimeClass",
    );
    const IMMUTABLE: &'static [&'static str] = &["handler"];
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Handler"), print::AGE];

    fn validate(object: &api::RuntimeClass, errors: &mut Errors) {
        errors.all_invalid(&Path::new("handler"), &object.handler, names::is_dns1123_label(&object.handler));
        let overhead = object.overhead.iter().flat_map(|overhead| overhead.pod_fixed.iter().flatten());
        for (name, value) in overhead {
            let at = Path::new("overhead").child("podFixed").key(name);
            quantity::container_resource(name, &at, errors);
            quantity::amount(name, value, &at, errors);
        }
        if let Some(scheduling) = &object.scheduling {
            let path = Path::new("scheduling");
            meta::labels(scheduling.node_selector.as_ref(), &path.child("nodeSelector"), errors);
            let tolerations = scheduling.tolerations.as_ref();
            pod::tolerations(tolerations, &path.child("tolerations"), errors);
            for (index, toleration) in tolerations.into_iter().flatten().enumerate() {
                if tolerations.into_iter().flatten().take(index).any(|other| other == toleration) {
                    errors.duplicate(&path.child("tolerations").index(index), toleration);
                }
            }
        }
    }

    fn warnings(new: &api::RuntimeClass, _old: Option<&api::RuntimeClass>) -> Vec<String> {
        let selector = new.scheduling.as_ref().and_then(|scheduling| scheduling.node_selector.as_ref());
        let deprecated = selector.into_iter().flatten().filter_map(|(label, _)| pod::deprecated_label(label));
        deprecated.map(|instead| format!("scheduling.nodeSelector: {instead}")).collect()
    }

    fn cells(object: &Value, typed: &api::RuntimeClass, now: Timestamp) -> Vec<Value> {
        vec![print::name(object), json!(typed.handler), print::age(object, now)]
    }
}
