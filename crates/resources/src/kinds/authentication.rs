//! `authentication.k8s.io/v1`: who is asking. Answered by the API server, never stored.

use k8s_openapi::api::authentication::v1 as api;
use machinery::field::Path;
use serde_json::Value;

use crate::facts::Facts;
use crate::resource::Kind;
use crate::validate::Errors;
use crate::value::Defaulting;

const GROUP: &str = "authentication.k8s.io";

pub struct TokenReview;

impl Kind for TokenReview {
    type Object = api::TokenReview;

    const FACTS: Facts = Facts::cluster(
        GROUP,
        "v1",
        "TokenReview",
        "tokenreviews",
        "tokenreview",
        "io.k8s.api.authentication.v1.TokenReview",
    )
    .posted();

    fn validate(object: &api::TokenReview, errors: &mut Errors) {
        errors.needed(&Path::new("spec").child("token"), &object.spec.token);
    }
}

pub struct SelfSubjectReview;

impl Kind for SelfSubjectReview {
    type Object = api::SelfSubjectReview;

    const FACTS: Facts = Facts::cluster(
        GROUP,
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        "io.k8s.api.authentication.v1.SelfSubjectReview",
    )
    .posted();
}

/// The body of `serviceaccounts/NAME/token`.
pub struct TokenRequest;

impl Kind for TokenRequest {
    type Object = api::TokenRequest;

    const FACTS: Facts =
        Facts::namespaced(GROUP, "v1", "TokenRequest", "", "", "io.k8s.api.authentication.v1.TokenRequest").posted();

    fn defaults(object: &mut Value) {
        object.make("spec").or("expirationSeconds", 3600);
    }

    fn validate(object: &api::TokenRequest, errors: &mut Errors) {
        let path = Path::new("spec").child("expirationSeconds");
        match object.spec.as_ref().and_then(|spec| spec.expiration_seconds) {
            Some(seconds) if seconds < 600 => {
                errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
            }
            Some(seconds) if seconds > 1 << 32 => {
                errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
            }
            _ => {}
        }
    }
}
