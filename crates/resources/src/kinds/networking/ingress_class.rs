//! IngressClass: which controller serves an Ingress.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::GROUP;
use crate::facts::Facts;
use crate::print::{self, NONE};
use crate::resource::Kind;
use crate::validate::{Errors, named, text};
use crate::value::Defaulting;

pub struct IngressClass;

const MAX_CONTROLLER: usize = 250;

impl Kind for IngressClass {
    type Object = api::IngressClass;

    const FACTS: Facts = Facts {
        generation: true,
        ..Facts::cluster(
            GROUP,
            "v1",
            "IngressClass",
            "ingressclasses",
            "ingressclass",
            "io.k8s.api.networking.v1.IngressClass",
        )
    };
    const IMMUTABLE: &'static [&'static str] = &["spec.controller"];
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Controller"), print::text("Parameters"), print::AGE];

    fn defaults(object: &mut Value) {
        if let Some(parameters) = object.make("spec").at("parameters") {
            parameters.or("scope", "Cluster");
        }
    }

    fn validate(object: &api::IngressClass, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.spec.clone().unwrap_or_default();
        let (controller, at) = (text(&spec.controller), path.child("controller"));
        if controller.len() > MAX_CONTROLLER {
            errors.too_long(&at, MAX_CONTROLLER);
        }
        named::domain_prefixed_path(controller, &at, errors);
        if let Some(parameters) = &spec.parameters {
            self::parameters(parameters, &path.child("parameters"), errors);
        }
    }

    fn cells(object: &Value, typed: &api::IngressClass, now: Timestamp) -> Vec<Value> {
        let spec = typed.spec.as_ref();
        let parameters = spec.and_then(|spec| spec.parameters.as_ref()).map(|parameters| {
            let group = parameters.api_group.as_ref().map(|group| format!(".{group}")).unwrap_or_default();
            format!("{}{group}/{}", parameters.kind, parameters.name)
        });
        vec![
            print::name(object),
            json!(spec.map_or("", |spec| text(&spec.controller))),
            json!(parameters.as_deref().unwrap_or(NONE)),
            print::age(object, now),
        ]
    }
}

fn parameters(parameters: &api::IngressClassParametersReference, path: &Path, errors: &mut Errors) {
    named::optional_subdomain(text(&parameters.api_group), &path.child("apiGroup"), errors);
    named::segment(&parameters.kind, &path.child("kind"), errors);
    named::segment(&parameters.name, &path.child("name"), errors);
    let (at, namespace) = (path.child("namespace"), parameters.namespace.as_deref());
    errors.one_of(&path.child("scope"), parameters.scope.as_deref(), &["Cluster", "Namespace"]);
    match (text(&parameters.scope), namespace) {
        ("Namespace", None | Some("")) => errors.required(&at, "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", Some(namespace)) => {
            errors.all_invalid(&at, namespace, machinery::names::is_dns1123_label(namespace));
        }
        ("Cluster", Some(_)) => errors.forbidden(&at, "`parameters.scope` is set to 'Cluster'"),
        _ => {}
    }
}
