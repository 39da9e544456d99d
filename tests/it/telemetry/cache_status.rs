//! `Entry::cache_status`: its content, and its form by the grammar of RFC 8941.

use std::time::Duration;

use proptest::prelude::*;
use tidegate::{BoxError, Cache, Entry, Freshness, Source};
use tokio::time::sleep;

use crate::support::aging::{make_stale, with_stale_if_error, with_stale_while_revalidate};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, begin};

on_both_tiers! {
    a_member_says_how_a_look_up_was_answered
    a_stale_answer_says_so
    a_value_that_is_not_stored_is_not_reported_as_stored
}

/// An item of a structured field, parsed by RFC 8941 §4.2: its name and its parameters.
struct Member {
    name: String,
    is_token: bool,
    parameters: Vec<(String, String)>,
}

impl Member {
    fn parse(text: &str) -> Option<Self> {
        assert!(text.is_ascii());
        let mut rest = text;
        let (name, is_token) = if rest.starts_with('"') {
            (string(&mut rest)?, false)
        } else {
            (token(&mut rest)?, true)
        };
        let mut parameters = Vec::new();
        while let Some(after) = rest.strip_prefix(';') {
            rest = after.trim_start_matches(' ');
            let end = rest
                .find(|letter: char| {
                    !(letter.is_ascii_lowercase()
                        || letter.is_ascii_digit()
                        || "_-.*".contains(letter))
                })
                .unwrap_or(rest.len());
            let (key, after) = rest.split_at(end);
            if !key.starts_with(|first: char| first.is_ascii_lowercase() || first == '*') {
                return None;
            }
            rest = after;
            let value = match rest.strip_prefix('=') {
                None => "?1".to_owned(),
                Some(after) => {
                    rest = after;
                    match after.chars().next()? {
                        '"' => string(&mut rest)?,
                        '-' | '0'..='9' => integer(&mut rest)?,
                        _ => token(&mut rest)?,
                    }
                }
            };
            assert!(parameters.iter().all(|(other, _)| other != key), "twice");
            parameters.push((key.to_owned(), value));
        }
        rest.is_empty().then_some(Self {
            name,
            is_token,
            parameters,
        })
    }

    fn of(&self, key: &str) -> Option<&str> {
        let mut those = self.parameters.iter().filter(|(name, _)| name == key);
        those.next().map(|(_, value)| value.as_str())
    }

    /// All parameters but the time to live.
    fn rest(&self) -> Vec<String> {
        let others = self.parameters.iter().filter(|(name, _)| name != "ttl");
        others
            .map(|(name, value)| match value.as_str() {
                "?1" => name.clone(),
                value => format!("{name}={value}"),
            })
            .collect()
    }

    fn ttl(&self) -> i64 {
        let ttl = self.of("ttl").expect("a time to live");
        ttl.parse().expect("a number")
    }
}

fn token(rest: &mut &str) -> Option<String> {
    let is_letter =
        |letter: char| letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(letter);
    if !rest.starts_with(|first: char| first.is_ascii_alphabetic() || first == '*') {
        return None;
    }
    let end = rest.find(|letter| !is_letter(letter)).unwrap_or(rest.len());
    let (token, after) = rest.split_at(end);
    *rest = after;
    Some(token.to_owned())
}

fn string(rest: &mut &str) -> Option<String> {
    let mut text = String::new();
    let mut letters = rest.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => {
                *rest = &rest[at + 1..];
                return Some(text);
            }
            '\\' => match letters.next()?.1 {
                escaped @ ('"' | '\\') => text.push(escaped),
                _ => return None,
            },
            ' '..='~' => text.push(letter),
            _ => return None,
        }
    }
    None
}

fn integer(rest: &mut &str) -> Option<String> {
    let digits_part = rest.strip_prefix('-').unwrap_or(rest);
    let digits = digits_part.len()
        - digits_part
            .trim_start_matches(|digit: char| digit.is_ascii_digit())
            .len();
    if !(1..=15).contains(&digits) {
        return None;
    }
    let (number, after) = rest.split_at(rest.len() - digits_part.len() + digits);
    *rest = after;
    Some(number.to_owned())
}

fn member(entry: &Entry<String>) -> Member {
    let text = entry.cache_status("users");
    let member = Member::parse(&text).unwrap_or_else(|| panic!("not in the grammar: {text}"));
    assert!(member.is_token && member.name == "users", "{text}");
    let (hit, fwd) = (member.of("hit"), member.of("fwd"));
    assert!(hit.is_some() != fwd.is_some(), "one of them: {text}");
    member
}

async fn got(node: &Node, key: u64) -> Entry<String> {
    let got = node.get_entry(key).await.expect("a look-up");
    got.expect("the key exists")
}

async fn a_member_says_how_a_look_up_was_answered(backend: Backend) {
    let db = Db::default();
    let hour = |builder: tidegate::CacheBuilder<Db>| builder.ttl(Duration::from_secs(3_600));
    let a = backend.node_with(&db, hour).await;
    let b = backend.node_with(&db, hour).await;
    let gate = db.gate();
    let (node, other) = (a.clone(), a.clone());
    let first = begin(async move { got(&node, 1).await }).await;
    gate.reached().await;
    let second = begin(async move { got(&other, 1).await }).await;
    gate.open();
    let (first, second) = (first.await.expect("ends"), second.await.expect("ends"));
    assert_eq!(
        (first.source(), second.source()),
        (Source::Loader, Source::Coalesced)
    );
    assert_eq!(member(&first).rest(), ["fwd=miss", "stored"]);
    assert_eq!(member(&second).rest(), ["fwd=miss", "stored", "collapsed"]);
    for (node, source) in [(&a, Source::L1), (&b, Source::L2), (&b, Source::L1)] {
        let entry = got(node, 1).await;
        assert_eq!(entry.source(), source);
        assert_eq!(member(&entry).rest(), ["hit"], "{source:?}");
        // An allowance for a slow machine.
        assert!((3_000..=3_600).contains(&member(&entry).ttl()));
        assert!(entry.age() < Duration::from_secs(600));
        assert_eq!(entry.freshness(), Freshness::Fresh);
    }
    backend.check(&[&a, &b]).await;
}

async fn a_stale_answer_says_so(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a], 1).await;
    let gate = db.gate();
    let entry = got(&a, 1).await;
    assert_eq!(entry.freshness(), Freshness::Stale);
    assert_eq!(member(&entry).rest(), ["hit"]);
    assert!((-100..0).contains(&member(&entry).ttl()));
    gate.open();
    let c = backend
        .named("others", db.clone(), with_stale_if_error)
        .await;
    make_stale(&db, &[&c], 2).await;
    db.behave(Behaviour::fails());
    let entry = got(&c, 2).await;
    assert_eq!(entry.freshness(), Freshness::StaleOnError);
    assert_eq!(
        member(&entry).rest(),
        ["fwd=stale", "detail=stale-if-error"]
    );
    assert!((-100..0).contains(&member(&entry).ttl()));
    db.behave(Behaviour::default());
    let d = backend
        .named("more", db.clone(), |builder| {
            with_stale_if_error(builder).error_backoff(Duration::ZERO)
        })
        .await;
    make_stale(&db, &[&d], 3).await;
    let entry = got(&d, 3).await;
    assert_eq!(entry.freshness(), Freshness::Fresh);
    assert_eq!(member(&entry).rest(), ["fwd=stale", "stored"]);
    // Expired by a call, long before the TTL ends.
    d.expire(&3).await.expect("an expiry");
    db.behave(Behaviour::fails());
    let entry = got(&d, 3).await;
    assert_eq!(
        member(&entry).rest(),
        ["fwd=stale", "detail=stale-if-error"]
    );
    assert_eq!(member(&entry).ttl(), 0);
    for node in [&a, &c, &d] {
        node.check().await;
    }
}

async fn a_value_that_is_not_stored_is_not_reported_as_stored(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    assert_eq!(member(&got(&a, 1).await).rest(), ["fwd=miss"]);
    db.behave(Behaviour::default());
    let gate = db.gate();
    let node = a.clone();
    let caller = begin(async move { got(&node, 2).await }).await;
    gate.reached().await;
    a.invalidate(&2).await.expect("an invalidation");
    gate.open();
    let entry = caller.await.expect("it ends");
    assert_eq!(member(&entry).rest(), ["fwd=miss"], "the fill was refused");
    let without = backend
        .node_with(&db, |builder| builder.l1_capacity(0))
        .await;
    let entry = got(&without, 3).await;
    assert_eq!(member(&entry).rest(), ["fwd=miss", "stored"], "in L2");
    backend.check(&[&a, &without]).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_shared_tier_a_value_invalidated_during_its_load_is_not_stored() {
    let db = Db::default();
    let builder = Cache::builder("users", db.clone());
    let a = Node::new(builder.build().expect("settings that make sense"));
    assert_eq!(member(&got(&a, 1).await).rest(), ["fwd=miss", "stored"]);
    let gate = db.gate();
    let node = a.clone();
    let caller = begin(async move { got(&node, 2).await }).await;
    gate.reached().await;
    a.invalidate(&2).await.expect("an invalidation");
    gate.open();
    let entry = caller.await.expect("it ends");
    assert_eq!(member(&entry).rest(), ["fwd=miss"]);
    a.check().await;
}

/// The time to live at the moment of rendering, rounded down.
#[tokio::test(start_paused = true)]
async fn the_time_to_live_goes_on_and_below_zero() {
    let load = tidegate::loader_fn(|id: u64| async move { Ok::<_, BoxError>(id.to_string()) });
    let builder = Cache::builder("users", load).ttl_jitter(0.0);
    let cache: Cache<u64, String, BoxError> = builder
        .ttl(Duration::from_secs(2))
        .build()
        .expect("settings that make sense");
    let entry = cache
        .get_entry(&1)
        .await
        .expect("a look-up")
        .expect("it exists");
    let mut ttls = Vec::new();
    for _ in 0..5 {
        ttls.push(member(&entry).ttl());
        sleep(Duration::from_millis(750)).await;
    }
    assert_eq!(ttls, [2, 1, 0, -1, -1]);
}

proptest! {
    /// The member follows the grammar for any name of a cache, and contains the name where the
    /// grammar allows it.
    #[test]
    fn any_name_is_written_within_the_grammar(name in any::<String>(), text in "[ -~]{0,20}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let entry = runtime.expect("a runtime").block_on(async {
            let load = tidegate::loader_fn(|_: u64| async { Ok::<_, BoxError>(String::new()) });
            let cache: Cache<u64, String, BoxError> =
                Cache::builder("users", load).build().expect("settings that make sense");
            cache.get_entry(&1).await.expect("a look-up").expect("it exists")
        });
        let member = Member::parse(&entry.cache_status(&name)).expect("in the grammar");
        let shown: String = name
            .chars()
            .map(|letter| if matches!(letter, ' '..='~') { letter } else { '?' })
            .collect();
        prop_assert_eq!(member.name, shown);
        let member = Member::parse(&entry.cache_status(&text)).expect("in the grammar");
        prop_assert_eq!(member.name, text);
    }
}
