//! `storage.k8s.io/v1`: classes of storage, and what drivers and the attach controller tell each other.

mod csi_driver;
mod csi_node;
mod csi_storage_capacity;
mod storage_class;
mod volume_attachment;
mod volume_attributes_class;

pub use csi_driver::CSIDriver;
pub use csi_node::CSINode;
pub use csi_storage_capacity::CSIStorageCapacity;
pub use storage_class::StorageClass;
pub use volume_attachment::VolumeAttachment;
pub use volume_attributes_class::VolumeAttributesClass;

use std::collections::BTreeMap;

use machinery::field::Path;

use crate::facts::Facts;
use crate::pod;
use crate::validate::Errors;

const GROUP: &str = "storage.k8s.io";
/// Bytes of all keys and values together.
const MAX_PARAMETERS_BYTES: usize = 256 * 1024;
const MAX_PARAMETERS: usize = 512;

const fn cluster(kind: &'static str, plural: &'static str, singular: &'static str, schema: &'static str) -> Facts {
    Facts::cluster(GROUP, "v1", kind, plural, singular, schema)
}

/// A CSI driver's name, which must be there.
fn driver(name: &str, path: &Path, errors: &mut Errors) {
    errors.needed(path, name);
    pod::driver(name, path, errors);
}

fn parameters(parameters: Option<&BTreeMap<String, String>>, path: &Path, errors: &mut Errors) {
    let Some(parameters) = parameters else { return };
    if parameters.len() > MAX_PARAMETERS {
        return errors.too_long(path, MAX_PARAMETERS);
    }
    if parameters.contains_key("") {
        errors.invalid(path, "", "field can not be empty.");
    }
    if parameters.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_PARAMETERS_BYTES {
        errors.too_long(path, MAX_PARAMETERS_BYTES);
    }
}

/// `updates to X are forbidden.` when the values differ.
fn forbidden_update<T: PartialEq>(key: &'static str, new: &T, old: &T, errors: &mut Errors) {
    if new != old {
        errors.forbidden(&Path::new(key), format!("updates to {key} are forbidden."));
    }
}
