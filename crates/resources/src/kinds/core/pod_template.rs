//! PodTemplate: a pod template on its own, kept for history's sake.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::pod;
use crate::print;
use crate::resource::Kind;
use crate::validate::Errors;

pub struct PodTemplate;

impl Kind for PodTemplate {
    type Object = api::PodTemplate;

    const FACTS: Facts = Facts {
        generation: true,
        ..Facts::namespaced("", "v1", "PodTemplate", "podtemplates", "podtemplate", "io.k8s.api.core.v1.PodTemplate")
    };
    const TEMPLATE: &'static [&'static str] = &["template"];
    const COLUMNS: &'static [Column] =
        &[print::NAME, print::text("Containers"), print::text("Images"), print::text("Pod Labels")];

    fn validate(object: &api::PodTemplate, errors: &mut Errors) {
        if let Some(template) = &object.template {
            pod::validate_template(template, &Path::new("template"), errors);
        }
    }

    fn cells(object: &Value, typed: &api::PodTemplate, _now: Timestamp) -> Vec<Value> {
        let labels = typed.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
        let [containers, images, labels] = print::template(typed.template.as_ref(), print::labels(labels));
        vec![print::name(object), containers, images, json!(labels)]
    }

    fn generation_changes(new: &Value, old: &Value) -> bool {
        !machinery::schema::semantic_equal(&new["template"], &old["template"])
    }
}
