//! Device rules: the set every container has, and their v1 spelling.

use crate::sys::bpf::{DeviceRule, MKNOD, READ, WRITE};

const ALL: u32 = MKNOD | READ | WRITE;

const fn char_device(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule { block: false, major: Some(major), minor, access: ALL }
}

/// mknod of anything; use of null, zero, full, random, urandom, tty, console, ptmx and pseudo-terminals.
pub(crate) const DEFAULT: &[DeviceRule] = &[
    DeviceRule { block: false, major: None, minor: None, access: MKNOD },
    DeviceRule { block: true, major: None, minor: None, access: MKNOD },
    char_device(1, Some(3)),
    char_device(1, Some(5)),
    char_device(1, Some(7)),
    char_device(1, Some(8)),
    char_device(1, Some(9)),
    char_device(5, Some(0)),
    char_device(5, Some(1)),
    char_device(5, Some(2)),
    char_device(136, None),
];

/// A rule from CRI's permissions ("rwm").
pub(crate) fn rule(block: bool, major: u32, minor: u32, permissions: &str) -> DeviceRule {
    let bits = [('m', MKNOD), ('r', READ), ('w', WRITE)];
    let access = bits.iter().filter(|(letter, _)| permissions.contains(*letter)).map(|(_, bit)| bit).sum();
    DeviceRule { block, major: Some(major), minor: Some(minor), access }
}

/// The line for `devices.allow`.
pub(super) fn text(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or("*".into(), |number| number.to_string());
    let letters: String = [('r', READ), ('w', WRITE), ('m', MKNOD)]
        .iter()
        .filter(|(_, bit)| rule.access & bit != 0)
        .map(|(l, _)| *l)
        .collect();
    format!("{} {}:{} {letters}", if rule.block { 'b' } else { 'c' }, number(rule.major), number(rule.minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_the_kernel_wants_them() {
        assert_eq!(text(&DEFAULT[0]), "c *:* m");
        assert_eq!(text(&DEFAULT[2]), "c 1:3 rwm");
        assert_eq!(text(&DEFAULT[10]), "c 136:* rwm");
        assert_eq!(text(&rule(true, 8, 1, "rw")), "b 8:1 rw");
    }
}
