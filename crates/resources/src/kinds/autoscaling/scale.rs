//! Scale: the view of a workload that autoscalers and `kubectl scale` write.

use k8s_openapi::api::autoscaling::v1 as api;
use machinery::field::Path;

use crate::facts::Facts;
use crate::resource::Kind;
use crate::validate::Errors;

pub struct Scale;

impl Kind for Scale {
    type Object = api::Scale;

    const FACTS: Facts =
        Facts::namespaced("autoscaling", "v1", "Scale", "", "", "io.k8s.api.autoscaling.v1.Scale").posted();

    fn validate(object: &api::Scale, errors: &mut Errors) {
        let replicas = object.spec.as_ref().and_then(|spec| spec.replicas);
        errors.non_negative(&Path::new("spec").child("replicas"), replicas);
    }
}
