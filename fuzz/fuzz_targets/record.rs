//! The fuzz target of everything that is decoded: records, payloads and messages. No input may
//! panic or allocate without bound.
//!
//! ```text
//! cargo install cargo-fuzz
//! RUSTC_BOOTSTRAP=1 cargo fuzz run record -- -max_total_time=60
//! ```

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::fuzzing::any_bytes(bytes));
