//! `authorization.k8s.io/v1`: may they do it. Answered by the API server, never stored.

use k8s_openapi::api::authorization::v1 as api;
use machinery::field::Path;

use crate::facts::Facts;
use crate::resource::Kind;
use crate::validate::{Errors, text};

const GROUP: &str = "authorization.k8s.io";

pub struct SubjectAccessReview;

impl Kind for SubjectAccessReview {
    type Object = api::SubjectAccessReview;

    const FACTS: Facts = Facts::cluster(
        GROUP,
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        "io.k8s.api.authorization.v1.SubjectAccessReview",
    )
    .posted();

    fn validate(object: &api::SubjectAccessReview, errors: &mut Errors) {
        subject(&object.spec, errors);
    }
}

pub struct LocalSubjectAccessReview;

impl Kind for LocalSubjectAccessReview {
    type Object = api::LocalSubjectAccessReview;

    const FACTS: Facts = Facts::namespaced(
        GROUP,
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    )
    .posted();

    fn validate(object: &api::LocalSubjectAccessReview, errors: &mut Errors) {
        subject(&object.spec, errors);
        let path = Path::new("spec");
        if object.spec.non_resource_attributes.is_some() {
            let at = path.child("nonResourceAttributes");
            errors.invalid(&at, &object.spec.non_resource_attributes, "disallowed on this kind of request");
        }
        if let Some(attributes) = &object.spec.resource_attributes
            && text(&attributes.namespace) != text(&object.metadata.namespace)
        {
            let at = path.child("resourceAttributes").child("namespace");
            errors.invalid(&at, text(&attributes.namespace), "must match metadata.namespace");
        }
    }
}

pub struct SelfSubjectAccessReview;

impl Kind for SelfSubjectAccessReview {
    type Object = api::SelfSubjectAccessReview;

    const FACTS: Facts = Facts::cluster(
        GROUP,
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    )
    .posted();

    fn validate(object: &api::SelfSubjectAccessReview, errors: &mut Errors) {
        let spec = &object.spec;
        one_of(spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref(), errors);
    }
}

pub struct SelfSubjectRulesReview;

impl Kind for SelfSubjectRulesReview {
    type Object = api::SelfSubjectRulesReview;

    const FACTS: Facts = Facts::cluster(
        GROUP,
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    )
    .posted();
}

fn subject(spec: &api::SubjectAccessReviewSpec, errors: &mut Errors) {
    one_of(spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref(), errors);
    if text(&spec.user).is_empty() && spec.groups.as_ref().is_none_or(Vec::is_empty) {
        errors.invalid(&Path::new("spec").child("user"), "", "at least one of user or group must be specified");
    }
}

/// A review is of a resource or of a path, never of both or neither.
fn one_of(
    resource: Option<&api::ResourceAttributes>,
    non_resource: Option<&api::NonResourceAttributes>,
    errors: &mut Errors,
) {
    let path = Path::new("spec");
    match (resource, non_resource) {
        (Some(_), Some(_)) => errors.invalid(
            &path.child("nonResourceAttributes"),
            non_resource,
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => errors.invalid(
            &path.child("resourceAttributes"),
            resource,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
}
