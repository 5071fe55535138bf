//! VolumeAttachment: the wish that a volume be on a node, and whether it is.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{cluster, driver, parameters};
use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, named, text};

pub struct VolumeAttachment;

const MAX_MESSAGE: usize = 1024;
const EXACTLY_ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";

impl Kind for VolumeAttachment {
    type Object = api::VolumeAttachment;

    const FACTS: Facts = Facts {
        subresources: &[Subresource::own("status", "storage.k8s.io", "v1", "VolumeAttachment")],
        ..cluster("VolumeAttachment", "volumeattachments", "volumeattachment", "io.k8s.api.storage.v1.VolumeAttachment")
    };
    const IMMUTABLE: &'static [&'static str] = &["spec"];
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        Column { format: "name", ..print::text("Attacher") },
        print::text("PV"),
        print::text("Node"),
        print::boolean("Attached"),
        print::AGE,
    ];

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"attached": false});
    }

    fn validate(object: &api::VolumeAttachment, errors: &mut Errors) {
        let (spec, path) = (&object.spec, Path::new("spec"));
        driver(&spec.attacher, &path.child("attacher"), errors);
        let at = path.child("source");
        match (&spec.source.inline_volume_spec, &spec.source.persistent_volume_name) {
            (None, None) => errors.required(&at, EXACTLY_ONE),
            (Some(_), Some(_)) => errors.forbidden(&at, EXACTLY_ONE),
            (None, Some(name)) if name.is_empty() => {
                errors.required(&at.child("persistentVolumeName"), "must specify non empty persistentVolumeName");
            }
            _ => {}
        }
        errors.needed(&path.child("nodeName"), &spec.node_name);
        named::optional_subdomain(&spec.node_name, &path.child("nodeName"), errors);
    }

    fn validate_status_update(new: &api::VolumeAttachment, _old: &api::VolumeAttachment, errors: &mut Errors) {
        let (path, Some(status)) = (Path::new("status"), &new.status) else { return };
        parameters(status.attachment_metadata.as_ref(), &path.child("attachmentMetadata"), errors);
        for (key, error) in [("attachError", &status.attach_error), ("detachError", &status.detach_error)] {
            if error.as_ref().is_some_and(|error| text(&error.message).len() > MAX_MESSAGE) {
                errors.too_long(&path.child(key).child("message"), MAX_MESSAGE);
            }
        }
    }

    fn cells(object: &Value, typed: &api::VolumeAttachment, now: Timestamp) -> Vec<Value> {
        vec![
            print::name(object),
            json!(typed.spec.attacher),
            json!(text(&typed.spec.source.persistent_volume_name)),
            json!(typed.spec.node_name),
            json!(typed.status.as_ref().is_some_and(|status| status.attached)),
            print::age(object, now),
        ]
    }
}
