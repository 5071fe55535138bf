//! CSIStorageCapacity: how much of a class is left where, for the scheduler.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::GROUP;
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, named, quantity, selector};

pub struct CSIStorageCapacity;

impl Kind for CSIStorageCapacity {
    type Object = api::CSIStorageCapacity;

    const FACTS: Facts = Facts::namespaced(
        GROUP,
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
        "io.k8s.api.storage.v1.CSIStorageCapacity",
    );
    const IMMUTABLE: &'static [&'static str] = &["nodeTopology", "storageClassName"];
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("StorageClassName"), print::text("Capacity")];

    fn validate(object: &api::CSIStorageCapacity, errors: &mut Errors) {
        let at = Path::new("storageClassName");
        errors.needed(&at, &object.storage_class_name);
        named::optional_subdomain(&object.storage_class_name, &at, errors);
        if let Some(labels) = &object.node_topology {
            selector::validate(labels, &Path::new("nodeTopology"), errors);
        }
        for (key, value) in [("capacity", &object.capacity), ("maximumVolumeSize", &object.maximum_volume_size)] {
            if let Some(value) = value {
                quantity::non_negative(value, &Path::new(key), errors);
            }
        }
    }

    fn cells(object: &Value, typed: &api::CSIStorageCapacity, _now: Timestamp) -> Vec<Value> {
        let capacity = typed.capacity.as_ref().map_or("<unset>", |capacity| capacity.0.as_str());
        vec![print::name(object), json!(typed.storage_class_name), json!(capacity)]
    }
}
