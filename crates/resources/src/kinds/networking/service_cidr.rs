//! ServiceCIDR: ranges from which Services get their addresses.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::GROUP;
use crate::cidr::Cidr;
use crate::facts::{Facts, Subresource};
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, indexed};

pub struct ServiceCIDR;

impl Kind for ServiceCIDR {
    type Object = api::ServiceCIDR;

    const FACTS: Facts = Facts {
        subresources: &[Subresource::own("status", GROUP, "v1", "ServiceCIDR")],
        ..Facts::cluster(
            GROUP,
            "v1",
            "ServiceCIDR",
            "servicecidrs",
            "servicecidr",
            "io.k8s.api.networking.v1.ServiceCIDR",
        )
    };
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("CIDRs"), print::AGE];

    fn validate(object: &api::ServiceCIDR, errors: &mut Errors) {
        let path = Path::new("spec").child("cidrs");
        let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
        match cidrs.map_or(0, Vec::len) {
            0 => return errors.required(&path, "at least one CIDR required"),
            1 | 2 => {}
            _ => return errors.invalid(&path, cidrs, "may only hold up to 2 values"),
        }
        let mut families = Vec::new();
        for (at, text) in indexed(cidrs, &path) {
            let Some(cidr) = Cidr::check(text, &at, errors) else { continue };
            if !cidr.is_canonical() {
                errors.invalid(&at, text, "must not have bits set beyond the prefix length");
            }
            families.push(cidr.is_ipv4());
        }
        if families.len() == 2 && families[0] == families[1] {
            let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
            errors.invalid(&path, cidrs, detail);
        }
    }

    /// A range may get a second of the other family; nothing else changes.
    fn validate_update(new: &api::ServiceCIDR, old: &api::ServiceCIDR, errors: &mut Errors) {
        let cidrs =
            |object: &api::ServiceCIDR| object.spec.as_ref().and_then(|spec| spec.cidrs.clone()).unwrap_or_default();
        let (added, before) = (cidrs(new), cidrs(old));
        if before.len() == 1 && added.len() == 2 && added[0] == before[0] {
            return Self::validate(new, errors);
        }
        errors.immutable(&Path::new("spec").child("cidrs"), &added, &before);
    }

    fn cells(object: &Value, typed: &api::ServiceCIDR, now: Timestamp) -> Vec<Value> {
        let cidrs = typed.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
        vec![
            print::name(object),
            json!(cidrs.map(|cidrs| cidrs.join(",")).unwrap_or_default()),
            print::age(object, now),
        ]
    }
}
