//! Tests of `#[derive(CacheKey)]`: its keys can be read by people, and two values never share their
//! bytes.

use std::marker::PhantomData;

use proptest::prelude::*;

use crate::{CacheKey, KeyBuf};

fn text<K: CacheKey>(key: &K) -> String {
    String::from_utf8(super::encode(key)).expect("encoded keys are ASCII")
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "crate")]
struct Report {
    team: u64,
    month: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "crate")]
struct UserId(u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "crate")]
struct Everything;

#[derive(Clone, Debug, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "crate", rename = "all, of it")]
struct Renamed {}

/// Variants whose names, fields and numbers of fields are easily confused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "crate")]
enum Page {
    Start,
    Text(String),
    #[cache_key(rename = "Text,Start")]
    Tricky,
    Texts(String, String),
    #[cache_key(rename = "Some")]
    Named {
        name: Option<String>,
        r#type: u8,
    },
    Nested(Awkward, Everything, Report),
    Empty(),
}

/// Fields with the names of variables in the generated code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "crate")]
struct Awkward {
    __key: Option<u8>,
    __part0: (String, bool),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "crate")]
struct Pair<A, B: Ord, const N: usize>
where
    B: Copy,
{
    left: A,
    right: [u8; N],
    more: B,
}

/// The type parameter need not be a key where the bound is replaced.
#[derive(CacheKey)]
#[cache_key(crate = "crate", bound = "T: Send + Sync + 'static")]
struct Id<T>(u64, PhantomData<T>);

struct NoKey;

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        Self(self.0, PhantomData)
    }
}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Id<T> {}
impl<T> std::hash::Hash for Id<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "crate")]
enum Never {}

/// A type whose field comes from a macro.
macro_rules! key {
    ($name:ident($of:ty)) => {
        #[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
        #[cache_key(crate = "crate")]
        struct $name($of);
    };
}
key!(Made(String));

// The strategies are boxed, because by value they would overflow the stack of a test.

fn report() -> BoxedStrategy<Report> {
    let parts = any::<(u64, String)>();
    parts
        .prop_map(|(team, month)| Report { team, month })
        .boxed()
}

/// Texts that look like names of variants, separators and escapes.
fn word() -> BoxedStrategy<String> {
    prop_oneof![
        Just(String::new()),
        Just("Start".to_owned()),
        Just("Text".to_owned()),
        Just("Text,Start".to_owned()),
        Just("None".to_owned()),
        Just("Some".to_owned()),
        Just("%_".to_owned()),
        "[,:%_a]{0,3}",
        any::<String>(),
    ]
    .boxed()
}

fn page() -> BoxedStrategy<Page> {
    let boxed = (any::<Option<u8>>(), word(), any::<bool>());
    let boxed = boxed
        .prop_map(|(__key, word, flag)| Awkward {
            __key,
            __part0: (word, flag),
        })
        .boxed();
    prop_oneof![
        Just(Page::Start),
        word().prop_map(Page::Text),
        Just(Page::Tricky),
        (word(), word()).prop_map(|(a, b)| Page::Texts(a, b)),
        (proptest::option::of(word()), any::<u8>())
            .prop_map(|(name, r#type)| Page::Named { name, r#type }),
        (boxed, report()).prop_map(|(boxed, report)| Page::Nested(boxed, Everything, report)),
        Just(Page::Empty()),
    ]
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn two_values_of_an_enum_never_share_an_encoding(a in page(), b in page()) {
        prop_assert_eq!(a == b, text(&a) == text(&b), "{:?} {:?}: {}", a, b, text(&a));
    }

    /// The encoding of an enum also ends where the next key begins.
    #[test]
    fn two_pairs_of_enums_never_share_an_encoding(a in (page(), page()), b in (page(), page())) {
        prop_assert_eq!(a == b, text(&a) == text(&b), "{:?} {:?}: {}", a, b, text(&a));
    }

    #[test]
    fn two_structs_never_share_an_encoding(a in (report(), word()), b in (report(), word())) {
        let pair = |(left, word): &(Report, String)| Pair { left: left.clone(), right: [1, 2], more: word.len() };
        let (c, d) = (pair(&a), pair(&b));
        prop_assert_eq!(c == d, text(&c) == text(&d));
    }
}

#[test]
fn derived_keys_read_well() {
    let report = Report {
        team: 7,
        month: "May".to_owned(),
    };
    assert_eq!(text(&report), "7,May");
    assert_eq!(text(&UserId(42)), "42");
    assert_eq!(text(&Everything), "Everything");
    assert_eq!(text(&Renamed {}), "all%2C%20of%20it");
    assert_eq!(text(&Page::Start), "Start");
    assert_eq!(text(&Page::Empty()), "Empty");
    assert_eq!(text(&Page::Text("berlin".into())), "Text,berlin");
    assert_eq!(
        text(&Page::Texts("a,b".into(), String::new())),
        "Texts,a%2Cb,%_"
    );
    let named = |name| Page::Named { name, r#type: 3 };
    assert_eq!(text(&named(None)), "Some,None,3");
    assert_eq!(text(&named(Some("x".into()))), "Some,Some,x,3");
    let boxed = Awkward {
        __key: Some(1),
        __part0: ("w".into(), true),
    };
    assert_eq!(
        text(&Page::Nested(boxed, Everything, report.clone())),
        "Nested,Some,1,w,true,Everything,7,May"
    );
    let pair = Pair {
        left: report,
        right: *b"ab",
        more: 'z',
    };
    assert_eq!(text(&pair), "7,May,ab,z");
    assert_eq!(text(&Id::<NoKey>(9, PhantomData)), "9");
    assert_eq!(text(&Made("m".into())), "m");
    assert_eq!(text(&None::<Never>), "None");
}

/// With `rename` the entries under a variant's old name are found.
#[test]
fn a_renamed_variant_keeps_its_entries() {
    #[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
    #[cache_key(crate = "crate")]
    enum Before {
        Team(u64),
    }
    #[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
    #[cache_key(crate = "crate")]
    enum After {
        #[cache_key(rename = "Team")]
        Group(u64),
    }
    assert_eq!(text(&Before::Team(7)), text(&After::Group(7)));
}

#[test]
fn a_derived_encoding_is_the_one_that_is_written_by_hand() {
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct ByHand(String, u8);
    impl CacheKey for ByHand {
        fn encode(&self, key: &mut KeyBuf) {
            self.0.encode(key);
            self.1.encode(key);
        }
    }
    #[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
    #[cache_key(crate = "crate")]
    struct Derived(String, u8);
    assert_eq!(text(&ByHand("a".into(), 1)), text(&Derived("a".into(), 1)));
}
