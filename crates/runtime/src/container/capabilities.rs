//! Capability names, and the set a container gets.

use super::spec::Capabilities;

/// In the kernel's numbering.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a name with or without `CAP_`.
pub(crate) fn bit(name: &str) -> Result<u64, String> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let position = NAMES.iter().position(|known| *known == short);
    position.map(|position| 1 << position).ok_or_else(|| format!("unknown capability {name:?}"))
}

fn bits<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<u64, String> {
    names.into_iter().try_fold(0, |set, name| Ok(set | bit(name.as_ref())?))
}

const EVERY: u64 = (1 << NAMES.len()) - 1;

/// The default set with `add` and `drop` applied ("ALL" first, single names after it), within what
/// this process itself may hand on.
pub(crate) fn resolve(
    privileged: bool,
    add: &[String],
    drop: &[String],
    ambient: &[String],
    permitted: u64,
) -> Result<Capabilities, String> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let named = |names: &[String]| bits(names.iter().filter(|name| !is_all(name)));
    let base = match (privileged || add.iter().any(is_all), drop.iter().any(is_all)) {
        (true, _) => EVERY,
        (false, true) => 0,
        (false, false) => bits(DEFAULT)?,
    };
    let drop = if privileged { 0 } else { named(drop)? };
    let ambient = named(ambient)?;
    let bounding = ((base | named(add)? | ambient) & !drop) & permitted;
    Ok(Capabilities { bounding, ambient: ambient & bounding })
}

/// Whether a set holds the capability; for seccomp's conditions.
pub(crate) fn has(set: u64, name: &str) -> bool {
    bit(name).is_ok_and(|bit| set & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_follow_add_and_drop() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let default = bits(DEFAULT).unwrap();
        let net_admin = 1u64 << 12;
        let cases: &[(&[&str], &[&str], u64)] = &[
            (&[], &[], default),
            (&["NET_ADMIN"], &[], default | net_admin),
            (&["CAP_NET_ADMIN"], &["ALL"], net_admin),
            (&[], &["cap_chown"], default & !1),
            (&["ALL"], &["NET_ADMIN"], EVERY & !net_admin),
            (&[], &["ALL"], 0),
        ];
        for (add, drop, expected) in cases {
            let got = resolve(false, &names(add), &names(drop), &[], u64::MAX).unwrap();
            assert_eq!(got.bounding, *expected, "{add:?} {drop:?}");
        }
        assert_eq!(resolve(true, &[], &[], &[], 0b101).unwrap().bounding, 0b101);
        assert_eq!(resolve(false, &names(&["NOPE"]), &[], &[], 0).unwrap_err(), "unknown capability \"NOPE\"");
    }
}
