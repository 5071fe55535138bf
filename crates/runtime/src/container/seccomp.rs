//! Seccomp profiles to BPF: the RuntimeDefault set and the JSON format of Localhost profiles.
//!
//! Compiled by the service, installed by the container's init and by every process executed later.
//! A binary search over call numbers keeps the cost per call at about eight comparisons; calls of a
//! foreign architecture (32-bit programs) fail with ENOSYS.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::capabilities;
use super::syscalls::{self, number};

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

/// Docker's extension: rules that hold with or without a capability, or on some architectures.
#[derive(Clone, Debug, Default, Deserialize)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const TRACE: u32 = 0x7ff0_0000;
const ERRNO: u32 = 0x0005_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: (u32, &str) = (0xc000_003e, "amd64");
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: (u32, &str) = (0xc000_00b7, "arm64");

/// The action's return value for the kernel.
fn action(name: &str, errno: Option<u32>) -> Result<u32, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ERRNO" => ERRNO | (errno.unwrap_or(libc::EPERM as u32) & 0xffff),
        "SCMP_ACT_TRACE" => TRACE | (errno.unwrap_or(0) & 0xffff),
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        other => return Err(format!("unsupported seccomp action {other:?}")),
    })
}

/// The profile for RuntimeDefault, given the capabilities of the container.
pub(crate) fn runtime_default(capabilities: u64) -> Profile {
    let allow = |names: Vec<&str>, args: Vec<Argument>| Rule {
        names: names.into_iter().map(String::from).collect(),
        action: "SCMP_ACT_ALLOW".into(),
        args,
        ..Rule::default()
    };
    let argument = |index, value, value_two, op: &str| vec![Argument { index, value, value_two, op: op.into() }];
    let mut rules = vec![allow(syscalls::DEFAULT.split_whitespace().collect(), vec![])];
    for persona in [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        rules.push(allow(vec!["personality"], argument(0, persona, 0, "SCMP_CMP_EQ")));
    }
    rules.push(allow(vec!["socket"], argument(0, libc::AF_VSOCK as u64, 0, "SCMP_CMP_NE")));
    for (capability, names) in syscalls::BY_CAPABILITY {
        if capabilities::has(capabilities, capability) {
            rules.push(allow(names.split_whitespace().collect(), vec![]));
        }
    }
    if !capabilities::has(capabilities, "SYS_ADMIN") {
        const NAMESPACES: u64 = 0x7e02_0000;
        rules.push(allow(vec!["clone"], argument(0, NAMESPACES, 0, "SCMP_CMP_MASKED_EQ")));
        // Its flags lie behind a pointer; ENOSYS makes C libraries fall back to clone.
        rules.push(Rule {
            names: vec!["clone3".into()],
            action: "SCMP_ACT_ERRNO".into(),
            errno_ret: Some(libc::ENOSYS as u32),
            ..Rule::default()
        });
    }
    Profile { default_action: "SCMP_ACT_ERRNO".into(), default_errno_ret: None, syscalls: rules }
}

// One classic BPF instruction as the kernel stores it: code, jt, jf, k.
fn word(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    let bytes = code.to_ne_bytes();
    let k = k.to_ne_bytes();
    u64::from_ne_bytes([bytes[0], bytes[1], jt, jf, k[0], k[1], k[2], k[3]])
}
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;

/// What to do for one call: the first rule whose arguments match, else the last resort.
#[derive(Clone, Debug, Default)]
struct Decision {
    conditional: Vec<(Vec<Argument>, u32)>,
    plain: Option<u32>,
}

/// Compiles a profile for a container with these capabilities.
pub(crate) fn compile(profile: &Profile, capabilities: u64) -> Result<Vec<u64>, String> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut decisions: BTreeMap<u32, Decision> = BTreeMap::new();
    for rule in profile.syscalls.iter().filter(|rule| applies(rule, capabilities)) {
        let result = action(&rule.action, rule.errno_ret)?;
        for call in rule.names.iter().filter_map(|name| number(name)) {
            let decision = decisions.entry(call).or_default();
            match rule.args.is_empty() {
                true => decision.plain = decision.plain.or(Some(result)),
                false => decision.conditional.push((rule.args.clone(), result)),
            }
        }
    }
    let mut code = vec![
        word(LOAD, 0, 0, OFFSET_ARCHITECTURE),
        word(JUMP_EQUAL, 1, 0, ARCHITECTURE.0),
        word(RETURN, 0, 0, ERRNO | libc::ENOSYS as u32),
        word(LOAD, 0, 0, OFFSET_NUMBER),
    ];
    // x32 numbers lie above the table and fall to the default.
    let ranges = ranges(&decisions, default);
    code.extend(search(&ranges, default)?);
    if code.len() > 4096 {
        return Err(format!("seccomp profile compiles to {} instructions, more than 4096", code.len()));
    }
    Ok(code)
}

fn applies(rule: &Rule, capabilities: u64) -> bool {
    let held = |name: &String| capabilities::has(capabilities, name);
    let here = |name: &String| name == ARCHITECTURE.1;
    rule.includes.caps.iter().all(held)
        && (rule.includes.arches.is_empty() || rule.includes.arches.iter().any(here))
        && !rule.excludes.caps.iter().any(held)
        && !rule.excludes.arches.iter().any(here)
}

/// First numbers of consecutive calls with one decision, in order, from 0.
fn ranges(decisions: &BTreeMap<u32, Decision>, default: u32) -> Vec<(u32, Decision)> {
    let otherwise = Decision { plain: Some(default), ..Decision::default() };
    let mut ranges: Vec<(u32, Decision)> = vec![(0, otherwise.clone())];
    for (call, decision) in decisions {
        ranges.push((*call, decision.clone()));
        ranges.push((call + 1, otherwise.clone()));
    }
    // A later entry for the same number replaces an earlier one; equal neighbours merge.
    let mut merged: Vec<(u32, Decision)> = Vec::new();
    for (start, decision) in ranges {
        if merged.last().is_some_and(|(last, _)| *last == start) {
            merged.pop();
        }
        let same = |other: &Decision| {
            other.conditional.is_empty() && decision.conditional.is_empty() && other.plain == decision.plain
        };
        if !merged.last().is_some_and(|(_, last)| same(last)) {
            merged.push((start, decision));
        }
    }
    merged
}

fn search(ranges: &[(u32, Decision)], default: u32) -> Result<Vec<u64>, String> {
    if let [(_, decision)] = ranges {
        return decide(decision, default);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (low, upper) = (search(low, default)?, search(high, default)?);
    // Conditional jumps reach 255 instructions, the plain one any number.
    let mut code = vec![word(JUMP_GREATER_EQUAL, 0, 1, high[0].0), word(JUMP, 0, 0, low.len() as u32)];
    code.extend(low);
    code.extend(upper);
    Ok(code)
}

fn decide(decision: &Decision, default: u32) -> Result<Vec<u64>, String> {
    let mut code = Vec::new();
    for (arguments, result) in &decision.conditional {
        // All comparisons of a rule, each jumping past the rule when it fails.
        let mut tests: Vec<u64> = Vec::new();
        for argument in arguments.iter().rev() {
            let mut test = compare(argument, tests.len() + 1)?;
            test.extend(tests);
            tests = test;
        }
        code.extend(tests);
        code.push(word(RETURN, 0, 0, *result));
    }
    code.push(word(RETURN, 0, 0, decision.plain.unwrap_or(default)));
    Ok(code)
}

/// Falls through when the 64-bit argument matches; else skips `rest` further instructions.
fn compare(argument: &Argument, rest: usize) -> Result<Vec<u64>, String> {
    if argument.index > 5 {
        return Err(format!("seccomp argument index {} is above 5", argument.index));
    }
    let offset = 16 + 8 * argument.index;
    let (low, high) = (offset, offset + 4); // little-endian on every platform we build for
    let value = if argument.op == "SCMP_CMP_MASKED_EQ" { argument.value_two } else { argument.value };
    let (value_low, value_high) = (value as u32, (value >> 32) as u32);
    let skip = |ahead: usize| u8::try_from(rest + ahead).map_err(|_| "seccomp rule has too many arguments".to_string());
    let load = |at| word(LOAD, 0, 0, at);
    Ok(match argument.op.as_str() {
        "SCMP_CMP_EQ" => vec![
            load(high),
            word(JUMP_EQUAL, 0, skip(2)?, value_high),
            load(low),
            word(JUMP_EQUAL, 0, skip(0)?, value_low),
        ],
        "SCMP_CMP_MASKED_EQ" => vec![
            load(high),
            word(AND, 0, 0, (argument.value >> 32) as u32),
            word(JUMP_EQUAL, 0, skip(3)?, value_high),
            load(low),
            word(AND, 0, 0, argument.value as u32),
            word(JUMP_EQUAL, 0, skip(0)?, value_low),
        ],
        "SCMP_CMP_NE" => {
            vec![load(high), word(JUMP_EQUAL, 0, 2, value_high), load(low), word(JUMP_EQUAL, skip(0)?, 0, value_low)]
        }
        // Greater: a larger upper half decides; an equal one leaves it to the lower half.
        "SCMP_CMP_GT" | "SCMP_CMP_GE" => {
            let lower = if argument.op == "SCMP_CMP_GT" { JUMP_GREATER } else { JUMP_GREATER_EQUAL };
            vec![
                load(high),
                word(JUMP_GREATER, 3, 0, value_high),
                word(JUMP_EQUAL, 0, skip(2)?, value_high),
                load(low),
                word(lower, 0, skip(0)?, value_low),
            ]
        }
        "SCMP_CMP_LT" | "SCMP_CMP_LE" => {
            let lower = if argument.op == "SCMP_CMP_LT" { JUMP_GREATER_EQUAL } else { JUMP_GREATER };
            vec![
                load(high),
                word(JUMP_GREATER, skip(3)?, 0, value_high),
                word(JUMP_EQUAL, 0, 2, value_high),
                load(low),
                word(lower, skip(0)?, 0, value_low),
            ]
        }
        other => return Err(format!("unsupported seccomp comparison {other:?}")),
    })
}

/// Writes a compiled filter for [`read`].
pub(crate) fn write(path: &Path, program: &[u64]) -> io::Result<()> {
    let bytes: Vec<u8> = program.iter().flat_map(|word| word.to_ne_bytes()).collect();
    std::fs::write(path, bytes)
}

pub(crate) fn read(path: &Path) -> io::Result<Vec<u64>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program on (architecture, number, arguments) as the kernel would.
    fn evaluate(program: &[u64], architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0u32; 16];
        (data[0], data[1]) = (call, architecture);
        for (index, argument) in arguments.iter().enumerate() {
            (data[4 + 2 * index], data[5 + 2 * index]) = (*argument as u32, (*argument >> 32) as u32);
        }
        let (mut position, mut accumulator) = (0usize, 0u32);
        loop {
            let bytes = program[position].to_ne_bytes();
            let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
            let k = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let branch = |holds: bool| usize::from(if holds { bytes[2] } else { bytes[3] });
            position += 1;
            match code {
                LOAD => accumulator = data[k as usize / 4],
                AND => accumulator &= k,
                JUMP => position += k as usize,
                JUMP_EQUAL => position += branch(accumulator == k),
                JUMP_GREATER => position += branch(accumulator > k),
                JUMP_GREATER_EQUAL => position += branch(accumulator >= k),
                RETURN => return k,
                other => panic!("unknown code {other:#x}"),
            }
        }
    }

    #[test]
    fn runtime_default_decides_like_upstream() {
        let eperm = ERRNO | libc::EPERM as u32;
        let enosys = ERRNO | libc::ENOSYS as u32;
        let admin = capabilities::bit("SYS_ADMIN").unwrap();
        let cases: &[(&str, u64, u64, u32)] = &[
            ("read", 0, 0, ALLOW),
            ("unshare", 0, 0, eperm),
            ("unshare", 0, admin, ALLOW),
            ("keyctl", 0, 0, eperm),
            ("clone3", 0, 0, enosys),
            ("clone", libc::SIGCHLD as u64, 0, ALLOW),
            ("clone", libc::CLONE_NEWUSER as u64, 0, eperm),
            ("socket", libc::AF_INET as u64, 0, ALLOW),
            ("socket", libc::AF_VSOCK as u64, 0, eperm),
            ("personality", 0xffff_ffff, 0, ALLOW),
            ("personality", 0x1234, 0, eperm),
        ];
        for (name, first, set, expected) in cases {
            let program = compile(&runtime_default(*set), *set).unwrap();
            let got = evaluate(&program, ARCHITECTURE.0, number(name).unwrap(), [*first, 0, 0, 0, 0, 0]);
            assert_eq!(got, *expected, "{name}({first:#x}) with {set:#x}");
        }
        let program = compile(&runtime_default(0), 0).unwrap();
        assert_eq!(evaluate(&program, 0x4000_0003, 0, [0; 6]), enosys);
    }

    #[test]
    fn comparisons_take_all_64_bits() {
        let big = 1u64 << 40;
        for (op, value, hits, misses) in [
            ("SCMP_CMP_GT", big, vec![big + 1, u64::MAX], vec![big, 5, big - 1]),
            ("SCMP_CMP_GE", big, vec![big, big + 1], vec![big - 1, 0]),
            ("SCMP_CMP_LT", big, vec![big - 1, 0], vec![big, u64::MAX]),
            ("SCMP_CMP_LE", big, vec![big, 0], vec![big + 1]),
            ("SCMP_CMP_EQ", big, vec![big], vec![0, big + 1, big << 1]),
            ("SCMP_CMP_NE", big, vec![0, big + 1], vec![big]),
        ] {
            let json = format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_KILL_PROCESS",
                    "args":[{{"index":2,"value":{value},"op":"{op}"}}]}}]}}"#
            );
            let program = compile(&serde_json::from_str(&json).unwrap(), 0).unwrap();
            let run = |third| evaluate(&program, ARCHITECTURE.0, number("read").unwrap(), [0, 0, third, 0, 0, 0]);
            assert!(hits.iter().all(|hit| run(*hit) == KILL_PROCESS), "{op}");
            assert!(misses.iter().all(|miss| run(*miss) == ALLOW), "{op}");
        }
    }
}
