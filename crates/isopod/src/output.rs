//! What the commands print: the standard macros' names, without their panic.
//!
//! A reader that has seen enough closes our output (`isopod up | head -1`), and a log's disk fills up. Then
//! nobody listens, but a cluster that starts or stops must not be left half-way. Declared first in main, so
//! that every `println!` of this crate is this one.

use std::fmt::Arguments;
use std::io::{Write, stderr, stdout};

pub fn to_stdout(text: Arguments) {
    let _ = stdout().write_fmt(text);
}

pub fn to_stderr(text: Arguments) {
    let _ = stderr().write_fmt(text);
}

macro_rules! print {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!($($text)*)) };
}

macro_rules! println {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!("{}\n", format_args!($($text)*))) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::to_stderr(format_args!("{}\n", format_args!($($text)*))) };
}
