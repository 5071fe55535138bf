//! Warnings about values that are valid, but spelt in a way that somebody will misread.

use std::net::IpAddr;

use machinery::field::Path;

/// About an address's spelling.
pub fn ip(value: &str, path: &Path) -> Option<String> {
    let address: IpAddr = value.parse().ok()?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            let plain = v6.to_ipv4_mapped()?;
            Some(format!(
                "{path}: non-standard IP address {value:?} will be considered invalid in a future Kubernetes release: use \"{plain}\""
            ))
        }
        IpAddr::V6(_) if address.to_string() != value => {
            Some(format!("{path}: IPv6 address {value:?} should be in RFC 5952 canonical format (\"{address}\")"))
        }
        _ => None,
    }
}

/// About a network whose address has bits behind the prefix, or is not spelt as usual.
pub fn cidr(value: &str, path: &Path) -> Vec<String> {
    let parse = || {
        let (address, bits) = value.split_once('/')?;
        Some((address.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?))
    };
    let Some((address, bits)) = parse() else { return Vec::new() };
    let (network, width) = match address {
        IpAddr::V4(v4) => (IpAddr::V4((v4.to_bits() & !u32::MAX.checked_shr(bits).unwrap_or(0)).into()), 32),
        IpAddr::V6(v6) => (IpAddr::V6((v6.to_bits() & !u128::MAX.checked_shr(bits).unwrap_or(0)).into()), 128),
    };
    let mut warnings = Vec::new();
    if network != address {
        warnings.push(format!(
            "{path}: CIDR value {value:?} is ambiguous in this context (should be \"{network}/{bits}\" or \"{address}/{width}\"?)"
        ));
    }
    if address.is_ipv6() && format!("{address}/{bits}") != value {
        warnings.push(format!(
            "{path}: IPv6 CIDR value {value:?} should be in RFC 5952 canonical format (\"{address}/{bits}\")"
        ));
    }
    warnings
}

/// About a name that ends up in host names.
pub fn host_name(name: &str, used: &str) -> Option<String> {
    let wrong = machinery::names::is_dns1123_label(name);
    let advice = "which can result in surprising behavior; a DNS label is recommended";
    (!wrong.is_empty()).then(|| format!("metadata.name: this is used in {used}, {advice}: [{}]", wrong.join(" ")))
}
