//! The error messages of the derive macro.
//!
//! Each case in `fail/` does not compile, and its `.stderr` holds the message. A twin in `pass/`
//! differs from it in one line only, and is compiled into this test. All messages come from the
//! macro, so they are the same with every compiler.

use std::collections::BTreeSet;
use std::path::Path;

// The generated code names `::tidegate`. This test stands in for that crate, because trybuild would
// spend minutes on building the real one. The encodings themselves are tested in tidegate.
extern crate self as tidegate;

/// A stand-in for the trait.
pub trait CacheKey: Clone + Eq + std::hash::Hash + Send + Sync + 'static {
    /// Writes the parts of the key.
    fn encode(&self, key: &mut KeyBuf);
}

/// A stand-in for the buffer of a key.
#[derive(Debug)]
pub struct KeyBuf;

impl KeyBuf {
    /// Accepts a part.
    pub fn push_str(&mut self, _: &str) {}
}

impl CacheKey for u32 {
    fn encode(&self, _: &mut KeyBuf) {}
}

impl CacheKey for u64 {
    fn encode(&self, _: &mut KeyBuf) {}
}

impl CacheKey for String {
    fn encode(&self, _: &mut KeyBuf) {}
}

macro_rules! twins {
    ($($name:ident)*) => {
        $(
            #[expect(dead_code, reason = "the cases only have to compile")]
            mod $name {
                include!(concat!("pass/", stringify!($name), ".rs"));
            }
        )*
        const TWINS: &[&str] = &[$(stringify!($name)),*];
    };
}
twins!(
    bound crate_elsewhere empty_name lifetime not_text place rename_enum rename_field
    rename_struct several shared_name skip skip_variant twice union unknown
);

#[test]
fn faults_are_refused_where_they_stand() {
    trybuild::TestCases::new().compile_fail("tests/fail/*.rs");
}

#[test]
fn each_fault_has_a_twin_that_differs_in_one_place_and_compiles() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let names = |folder: &str| -> BTreeSet<String> {
        let files = std::fs::read_dir(tests.join(folder)).expect("a folder");
        let names = files.map(|file| file.expect("a file").file_name().into_string());
        let names = names.map(|name| name.expect("a text"));
        let names = names.filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()));
        names.collect()
    };
    let (fail, pass) = (names("fail"), names("pass"));
    assert_eq!(fail, pass);
    assert_eq!(pass, TWINS.iter().copied().map(str::to_owned).collect());
    assert!(fail.len() >= 16, "{fail:?}");
    for name in fail {
        let lines = |folder: &str| -> Vec<String> {
            let file = tests.join(folder).join(format!("{name}.rs"));
            let text = std::fs::read_to_string(file).expect("a text");
            text.lines().map(str::to_owned).collect()
        };
        let (fail, pass) = (lines("fail"), lines("pass"));
        assert_eq!(fail.len(), pass.len(), "{name}");
        let differ = fail.iter().zip(&pass).filter(|(fail, pass)| fail != pass);
        assert_eq!(differ.count(), 1, "{name}");
    }
}
