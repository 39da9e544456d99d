//! The rights that a Redis user needs (ACL rules): each missing one is named, and none fails a
//! look-up.

use std::time::Duration;

use futures_util::future::join_all;
use tidegate::{Cache, Channel, Event, Redis, RedisBuilder, Source};

use crate::support::backend::{check_records, users};
use crate::support::cluster::Cluster;
use crate::support::events::Events;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Raw, Reply, Server, long_timeout_builder};

/// The ACL rules that the guide names, without the user and its password.
fn rights() -> Vec<&'static str> {
    let guide = include_str!("../../src/guide/operations.md");
    let (_, rights) = guide
        .split_once("ACL SETUSER app on >password")
        .expect("a rule");
    let (rights, _) = rights.split_once("```").expect("its end");
    rights.split_whitespace().collect()
}

/// A server whose user `app` has these rights, or all but one of them.
struct Fixture {
    server: Server,
    raw: Raw,
    has_channels: bool,
}

impl Fixture {
    fn new() -> Self {
        let server = Server::start();
        let mut raw = server.raw();
        // Redis 6.0 has no permissions for channels.
        let rule = raw.try_ask("ACL SETUSER probe resetchannels");
        let has_channels = !matches!(rule, Reply::Error(_));
        Self {
            server,
            raw,
            has_channels,
        }
    }

    fn rights(&self) -> Vec<&'static str> {
        let mut rights = rights();
        rights.retain(|right| self.has_channels || !right.starts_with('&'));
        rights
    }

    fn grant_all_but(&mut self, missing: &str) {
        let mut rights = self.rights();
        rights.retain(|right| *right != missing);
        let rights = rights.join(" ");
        self.raw
            .ask(&format!("ACL SETUSER app reset on >secret {rights}"));
    }

    fn builder(&self) -> RedisBuilder {
        self.server.long_timeout_builder().user("app", "secret")
    }
}

fn node(name: &str, db: &Db, redis: &Redis, events: &Events) -> Node {
    let builder = Cache::builder(name, db.clone()).ttl_jitter(0.0);
    let builder = builder.on_event(events.callback());
    Node::new(builder.l2(redis.clone()).build().expect("a cache"))
}

async fn proven(node: &Node) {
    eventually("the channel is proven", async || {
        node.health().channel == Channel::Proven
    })
    .await;
}

/// Waits until the health of a cache names an ACL rule.
async fn wait_until_denied(node: &Node, rule: &str) {
    eventually(rule, async || {
        let denied = node.health().denied;
        denied.is_some_and(|denied| denied.contains(rule))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_names_each_right_that_is_missing_and_leaves_no_key() {
    let mut fixture = Fixture::new();
    let rights = fixture.rights();
    assert!(rights.len() > 15, "{rights:?}");
    for right in rights {
        fixture.grant_all_but(right);
        let error = fixture.builder().connect().await;
        let error = error.expect_err(right);
        assert!(
            error.is_denied() && error.is_refused(),
            "{right}: {error:?}"
        );
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let source = source.expect("what is missing");
        let (what, rules) = source.split_once(": ACL SETUSER app ").expect("the rule");
        assert!(
            rules.split(' ').any(|rule| rule == right),
            "{right}: {source}"
        );
        let name = right.trim_start_matches('+').to_uppercase();
        assert!(
            !right.starts_with('+') || what.contains(&name),
            "{right}: {source}"
        );
        // The rule that the error proposes grants the right.
        let rule = format!("ACL SETUSER app {rules}");
        fixture.raw.ask(&rule);
        drop(fixture.builder().connect().await.expect(&rule));
    }
    assert!(
        fixture.raw.keys("*").is_empty(),
        "a look at the rights leaves nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_missing_rights_are_named_together() {
    let mut fixture = Fixture::new();
    fixture.grant_all_but("");
    fixture.raw.ask("ACL SETUSER app -publish -set -zadd -time");
    let error = fixture
        .builder()
        .connect()
        .await
        .expect_err("four rights are missing");
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(
        source.as_deref(),
        Some(
            "the user app may not run TIME, SET, ZADD, PUBLISH: \
             ACL SETUSER app +time +set +zadd +publish"
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_at_the_rights_changes_no_key_even_where_one_has_its_name() {
    let mut fixture = Fixture::new();
    fixture.grant_all_but("");
    let before = fixture.raw.calls("set");
    drop(fixture.builder().connect().await.expect("connect"));
    assert!(fixture.raw.calls("set") > before, "it was tried");
    assert!(fixture.raw.keys("*").is_empty());
    // A key of this name that another client wrote without an expiry is not left without one.
    fixture.raw.ask("SET tidegate::probe there");
    drop(fixture.builder().connect().await.expect("connect"));
    check_records(&fixture.server);
}

/// Without the right to MGET, a process reads keys one at a time.
#[tokio::test]
async fn without_mget_look_ups_at_the_same_time_are_reads_of_their_own() {
    let mut fixture = Fixture::new();
    fixture.grant_all_but("");
    let (db, events) = (Db::default(), Events::default());
    let redis = fixture.builder().connect().await.expect("connect");
    let a = node("users", &db, &redis, &events);
    for key in 0..40 {
        a.get(key).await.expect("a load");
    }
    fixture.grant_all_but("+mget");
    let redis = fixture.builder().open().expect("a handle");
    let b = node("users", &db, &redis, &events);
    let got = join_all((0..20).map(|key| b.get(key))).await;
    let keys: Vec<u64> = (20..40).collect();
    let got = got.into_iter().chain(b.get_many(&keys).await);
    for (key, got) in (0..40).zip(got) {
        assert_eq!(value(got), format!("row {key}"));
    }
    assert_eq!(db.loads(), 40, "nothing was loaded again");
    a.check().await;
    b.check().await;
}

/// With `open`, a missing right disables only what it is for. Health and events name it, and
/// everything works again once it is granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opened_handle_says_what_is_missing_goes_on_and_heals() {
    let mut fixture = Fixture::new();
    for (at, right) in [
        "+evalsha",
        "+set",
        "+time",
        "+publish",
        "+subscribe",
        "~tidegate:*",
        "&tidegate:*",
    ]
    .into_iter()
    .enumerate()
    {
        if right.starts_with('&') && !fixture.has_channels {
            continue;
        }
        fixture.grant_all_but(right);
        fixture.raw.ask("FLUSHALL");
        let (db, events) = (Db::default(), Events::default());
        let redis = fixture.builder().timeout(Duration::from_millis(300)).open();
        let a = node("users", &db, &redis.expect("a handle"), &events);
        assert_eq!(value(a.get(1).await), "row 1", "{right}");
        wait_until_denied(&a, right).await;
        for key in 2..10 {
            assert_eq!(value(a.get(key).await), format!("row {key}"), "{right}");
        }
        assert_eq!(
            events.count(Event::Denied),
            1,
            "{right}: {:?}",
            events.all()
        );
        fixture.grant_all_but("");
        eventually("nothing is denied any more", async || {
            a.health().denied.is_none()
        })
        .await;
        proven(&a).await;
        let key = 100 + at as u64;
        assert_eq!(value(a.get(key).await), format!("row {key}"));
        eventually("loads fill L2", async || {
            fixture.raw.get(&users(key)).is_some()
        })
        .await;
        assert_eq!(
            events.count(Event::Granted),
            1,
            "{right}: {:?}",
            events.all()
        );
        a.check().await;
    }
    check_records(&fixture.server);
}

/// A check of the rights that gets no answer is repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_found_by_a_later_look_when_the_first_is_not_answered() {
    let mut fixture = Fixture::new();
    fixture.grant_all_but("+time");
    let proxy = Proxy::to(fixture.server.port()).await;
    proxy.set(ProxyMode::Hold("EVAL")).await;
    let timeout = Duration::from_millis(100);
    let builder = long_timeout_builder(proxy.port()).user("app", "secret");
    let redis = builder.timeout(timeout).open().expect("a handle");
    let (db, events) = (Db::default(), Events::default());
    let a = node("users", &db, &redis, &events);
    assert_eq!(value(a.get(1).await), "row 1");
    // The check has begun and has run into its timeout.
    eventually(
        "the clock is asked for",
        async || matches!(fixture.raw.ask("ACL LOG"), Reply::List(denied) if !denied.is_empty()),
    )
    .await;
    tokio::time::sleep(3 * timeout).await;
    assert_eq!(a.health().denied, None);
    proxy.set(ProxyMode::Pass).await;
    wait_until_denied(&a, "+time").await;
    fixture.grant_all_but("");
    eventually("nothing is denied any more", async || {
        a.health().denied.is_none()
    })
    .await;
    assert_eq!(
        (events.count(Event::Denied), events.count(Event::Granted)),
        (1, 1)
    );
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_taken_away_while_it_runs_shows_and_heals() {
    let mut fixture = Fixture::new();
    fixture.grant_all_but("");
    let (db, events) = (Db::default(), Events::default());
    let redis = fixture.builder().connect().await.expect("connect");
    let a = node("users", &db, &redis, &events);
    assert_eq!(value(a.get(1).await), "row 1");
    assert_eq!(a.health().denied, None);
    fixture.raw.ask("ACL SETUSER app -set");
    assert_eq!(value(a.get(2).await), "row 2");
    wait_until_denied(&a, "+set").await;
    let error = a
        .insert(3, "three".to_owned())
        .await
        .expect_err("SET is denied");
    assert!(error.is_denied(), "{error:?}");
    fixture.raw.ask("ACL SETUSER app +set");
    eventually("nothing is denied any more", async || {
        a.health().denied.is_none()
    })
    .await;
    a.insert(3, "three".to_owned()).await.expect("an insert");
    assert_eq!(
        (events.count(Event::Denied), events.count(Event::Granted)),
        (1, 1)
    );
    a.check().await;
    check_records(&fixture.server);
}

/// The server answers a refused SUBSCRIBE, but no command waits for that answer: the replies that
/// follow it belong to earlier commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_is_not_used_where_the_channel_of_one_cache_is_denied() {
    let mut fixture = Fixture::new();
    if !fixture.has_channels {
        // Redis 6.0 denies no channel to any user.
        fixture.grant_all_but("&tidegate:*");
        drop(fixture.builder().connect().await.expect("connect"));
        return;
    }
    fixture.grant_all_but("&tidegate:*");
    fixture
        .raw
        .ask("ACL SETUSER app &tidegate::* &tidegate:users:*");
    let (db, events) = (Db::default(), Events::default());
    let redis = fixture.builder().connect().await.expect("connect");
    let first = node("users", &db, &redis, &events);
    assert_eq!(value(first.get(1).await), "row 1");
    proven(&first).await;
    let second = node("posts", &db, &redis, &events);
    assert_eq!(value(second.get(1).await), "row 1");
    wait_until_denied(&second, "&tidegate:*").await;
    // Its subscription is retried in time, whatever messages come on the other channel.
    let messages = async {
        for key in 1_000.. {
            first.invalidate(&key).await.expect("an invalidation");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let subscribed = async {
        // Longer than the retry of a subscription takes, and longer than the proof of a channel takes.
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let entry = second
                .get_entry(1)
                .await
                .expect("a look-up")
                .expect("an entry");
            assert_eq!(entry.source(), Source::L2);
            assert_ne!(second.health().channel, Channel::Proven);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fixture.grant_all_but("");
        proven(&second).await;
    };
    tokio::select! {
        () = subscribed => {}
        () = messages => {}
    }
    for node in [&first, &second] {
        proven(node).await;
        node.check().await;
    }
    check_records(&fixture.server);
}

/// The reply to a refused SUBSCRIBE may arrive when no command waits for one, and is lost then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_whose_refusal_is_not_received_is_never_taken_as_confirmed() {
    let mut fixture = Fixture::new();
    if !fixture.has_channels {
        // Redis 6.0 denies no channel to any user.
        fixture.grant_all_but("&tidegate:*");
        drop(fixture.builder().connect().await.expect("connect"));
        return;
    }
    fixture.grant_all_but("&tidegate:*");
    fixture
        .raw
        .ask("ACL SETUSER app &tidegate::* &tidegate:users:*");
    let proxy = Proxy::to(fixture.server.port()).await;
    let redis = long_timeout_builder(proxy.port())
        .user("app", "secret")
        .connect()
        .await;
    let redis = redis.expect("connect");
    let (db, events) = (Db::default(), Events::default());
    let first = node("users", &db, &redis, &events);
    assert_eq!(value(first.get(1).await), "row 1");
    proven(&first).await;
    proxy.set(ProxyMode::HideDenials).await;
    let second = node("posts", &db, &redis, &events);
    assert_eq!(value(second.get(1).await), "row 1");
    // Longer than a subscription and the proof of a channel take.
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert_ne!(second.health().channel, Channel::Proven);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wait_until_denied(&second, "&tidegate:*").await;
    fixture.grant_all_but("");
    proxy.set(ProxyMode::Pass).await;
    for node in [&first, &second] {
        proven(node).await;
        node.check().await;
    }
    check_records(&fixture.server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_missing_rights_are_named_too() {
    let cluster = Cluster::start(3).await;
    let set = |rules: &str| {
        for node in &cluster.nodes {
            let rule = format!(
                "ACL SETUSER app reset on >secret {} {rules}",
                rights().join(" ")
            );
            if matches!(node.raw().try_ask(&rule), Reply::Error(_)) {
                node.raw().ask(&rule.replace("&tidegate:* ", ""));
            }
        }
    };
    let url = format!("redis-cluster://127.0.0.1:{}", cluster.nodes[0].port());
    let builder = || {
        Redis::builder(&url)
            .user("app", "secret")
            .timeout(Duration::from_secs(2))
    };
    for (missing, rule) in [
        ("-cluster", "+cluster"),
        ("-subscribe", "+subscribe"),
        ("-publish", "+publish"),
        ("-set", "+set"),
    ] {
        set(&format!("+cluster {missing}"));
        let error = builder().connect().await.expect_err(missing);
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert!(
            error.is_denied() && source.is_some_and(|source| source.contains(rule)),
            "{missing}: {error:?}"
        );
    }
    set("+cluster");
    builder().connect().await.expect("connect");
}
