//! Device control on cgroup v2: an eBPF program in place of v1's `devices.allow` files.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// One allowed device; `None` stands for every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRule {
    pub(crate) block: bool,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    /// Of `MKNOD`, `READ`, `WRITE`.
    pub(crate) access: u32,
}

pub(crate) const MKNOD: u32 = 1;
pub(crate) const READ: u32 = 2;
pub(crate) const WRITE: u32 = 4;

const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// opcode, dst | src << 4, offset, immediate: one eBPF instruction.
fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(dst | src << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

/// Allows what any rule allows, denies the rest.
/// Registers: 2 access, 3 type, 4 major, 5 minor, 6 scratch.
fn program(rules: &[DeviceRule]) -> Vec<u64> {
    const LOAD_W: u8 = 0x61;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const MOVE_REGISTER: u8 = 0xbf;
    const MOVE: u8 = 0xb7;
    const JUMP_UNEQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let mut code = vec![
        instruction(LOAD_W, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 3, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 2, 0, 0, 16),
        instruction(LOAD_W, 4, 1, 4, 0),
        instruction(LOAD_W, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = if rule.block { TYPE_BLOCK } else { TYPE_CHAR };
        let mut checks = vec![(3, kind)];
        checks.extend(rule.major.map(|major| (4, major as i32)));
        checks.extend(rule.minor.map(|minor| (5, minor as i32)));
        // Each failed check skips to the next rule: the checks after it, three words for the access
        // test, and the two that allow.
        for (position, (register, value)) in checks.iter().enumerate() {
            let skip = (checks.len() - position - 1 + 5) as i16;
            code.push(instruction(JUMP_UNEQUAL, *register, 0, skip, *value));
        }
        code.push(instruction(MOVE_REGISTER, 6, 2, 0, 0));
        code.push(instruction(AND, 6, 0, 0, !rule.access as i32 & 0xffff));
        code.push(instruction(JUMP_UNEQUAL, 6, 0, 2, 0));
        code.push(instruction(MOVE, 0, 0, 0, 1));
        code.push(instruction(EXIT, 0, 0, 0, 0));
    }
    code.push(instruction(MOVE, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Attaches a filter for `rules` to the cgroup whose directory is open as `cgroup`. It goes away with
/// the cgroup.
pub(crate) fn restrict_devices(cgroup: BorrowedFd, rules: &[DeviceRule]) -> io::Result<()> {
    let code = program(rules);
    let load = LoadAttributes {
        kind: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: pointers in the block refer to live data; its size is passed along.
    let raw = check(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &load, size_of::<LoadAttributes>()) })?;
    // SAFETY: a new descriptor from the kernel.
    let loaded = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    let attach = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &attach, size_of::<AttachAttributes>()) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};

    /// A cgroup that goes away with the test.
    struct Cgroup(PathBuf);

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn only_listed_devices_open() {
        let roots = [Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup")];
        let root =
            roots.into_iter().find(|root| root.join("cgroup.controllers").exists()).expect("cgroup v2 is mounted");
        let cgroup = Cgroup(root.join(format!("isopod-bpf-{}", uuid::Uuid::new_v4())));
        std::fs::create_dir(&cgroup.0).unwrap();
        let char_device = |minor, access| DeviceRule { block: false, major: Some(1), minor: Some(minor), access };
        let mknod_only = DeviceRule { block: true, major: None, minor: None, access: MKNOD };
        let rules = [char_device(3, READ | WRITE), char_device(5, WRITE), mknod_only];
        restrict_devices(std::fs::File::open(&cgroup.0).unwrap().as_fd(), &rules).unwrap();
        let script = r#"echo $$ > $0/cgroup.procs || exit 9
            for test in '<null' '>null' '<zero' '>zero' '<urandom'; do
                file=/dev/${test#?}
                case $test in '<'*) (: < $file);; *) (: > $file);; esac && echo yes || echo no
            done"#;
        let output = std::process::Command::new("sh").arg("-c").arg(script).arg(&cgroup.0).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "yes\nyes\nno\nyes\nno\n");
    }
}
