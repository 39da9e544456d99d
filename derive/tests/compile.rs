//! What does not compile, and what is said about it. Each case has a twin in `pass/` that differs in the
//! fault alone. All messages are the macro's own: no toolchain words them otherwise.

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn faults_are_refused_where_they_stand_and_their_twins_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/pass/*.rs");
    cases.compile_fail("tests/fail/*.rs");
}

#[test]
fn each_fault_has_a_twin_that_differs_in_one_place() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let names = |folder: &str| -> BTreeSet<String> {
        let files = std::fs::read_dir(tests.join(folder)).expect("a folder");
        let names = files.map(|file| file.expect("a file").file_name().into_string());
        let names = names.map(|name| name.expect("a text"));
        names.filter(|name| name.ends_with(".rs")).collect()
    };
    let (fail, pass) = (names("fail"), names("pass"));
    assert_eq!(fail, pass);
    assert!(fail.len() >= 16, "{fail:?}");
    for name in fail {
        let lines = |folder: &str| -> Vec<String> {
            let text = std::fs::read_to_string(tests.join(folder).join(&name)).expect("a text");
            text.lines().map(str::to_owned).collect()
        };
        let (fail, pass) = (lines("fail"), lines("pass"));
        assert_eq!(fail.len(), pass.len(), "{name}");
        let differ = fail.iter().zip(&pass).filter(|(fail, pass)| fail != pass);
        assert_eq!(differ.count(), 1, "{name}");
    }
}
