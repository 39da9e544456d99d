//! The rules of refreshes, one by one.

use std::convert::Infallible;

use super::super::coalesce::{Progress, Role, Want};
use super::super::flight::{Flight, Outcome, Purpose};
use super::*;
use crate::protocol::record::{HEADER, Header};
use crate::{Entry, Freshness, Read, WriteError};

const TTL: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);
const MOST: usize = crate::engine::core::MAX_BACKGROUND;

/// Ten seconds fresh, ten more while a new one is loaded, and twenty if that fails.
fn lasting<L: Loader>(settings: CacheBuilder<L>) -> CacheBuilder<L> {
    settings
        .ttl(TTL)
        .stale_while_revalidate(TTL)
        .stale_if_error(TTL * 2)
}

fn stale(source: &Database, tier: &InProcess) -> CacheBuilder<Database> {
    lasting(settings(source)).l2(tier.clone())
}

fn steps(values: &[&'static str]) -> Vec<Step> {
    values.iter().map(|value| Step::Found(value)).collect()
}

fn ground(gated: bool, values: &[&'static str]) -> (InProcess, Database) {
    (InProcess::new(), Database::new(gated, steps(values)))
}

async fn entry(cache: &Users) -> (String, Freshness) {
    let entry = cache.get_entry(&1).await.unwrap().unwrap();
    (entry.value().to_string(), entry.freshness())
}

fn spawn_get_with(cache: &Users, read: Read) -> JoinHandle<Got> {
    let cache = cache.clone();
    tokio::spawn(async move { cache.get_with(&1, read).await })
}

fn spawn_refresh(cache: &Users) -> JoinHandle<Got> {
    let cache = cache.clone();
    tokio::spawn(async move { cache.refresh(&1).await })
}

fn guard() -> Vec<u8> {
    [b"tidegate:users::{", KEY, b"}"].concat()
}

/// Takes every place for work that nobody waits for.
fn all_places_behind(cache: &Users) -> tokio::sync::OwnedSemaphorePermit {
    let behind = Arc::clone(&cache.engine().background);
    behind.try_acquire_many_owned(MOST as u32).unwrap()
}

/// The same source, which can tell that nothing has changed: where it is asked again, `Missing` stands
/// for that.
#[derive(Clone)]
struct Etags(Database);

impl Loader for Etags {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
        Ok(self.0.load(key).await?.version(7).tag("team:7"))
    }

    async fn reload(&self, key: &u64, _: &Entry<String>) -> Result<Loaded<String>, BoxError> {
        let loaded = self.0.load(key).await?;
        Ok(if loaded.value.is_none() {
            Loaded::unchanged()
        } else {
            loaded
        })
    }
}

fn etags(source: &Database) -> CacheBuilder<Etags> {
    let settings = Cache::builder("users", Etags(source.clone()));
    lasting(settings.ttl_jitter(0.0).refresh_ahead(0.0))
}

#[tokio::test(start_paused = true)]
async fn after_a_change_nobody_waits_for_the_refresh_from_before_it() {
    for change in ["invalidate", "insert", "expire"] {
        let (tier, source) = ground(true, &["old", "too late", "new"]);
        let (a, b) = (stale(&source, &tier).build().unwrap(), node(&source, &tier));
        source.answer();
        a.get(&1).await.unwrap();
        source.loading().await;
        tokio::time::advance(TTL).await;
        assert_eq!(entry(&a).await.1, Freshness::Stale);
        source.loading().await;
        match change {
            "invalidate" => b.invalidate(&1).await.unwrap(),
            "insert" => b.insert(1, "inserted".to_owned()).await.unwrap(),
            _ => b.expire(&1).await.unwrap(),
        }
        let got = spawn_refresh(&b);
        let begun = tokio::time::timeout(MS * 100, source.loading()).await;
        assert!(begun.is_ok(), "{change}");
        source.go.add_permits(2);
        assert_eq!(text(&got.await.unwrap()), Some("new"), "{change}");
        validate(&[&a, &b], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_granted_only_for_what_was_read() {
    let (tier, source) = ground(false, &["old", "new", "newer"]);
    let (a, b) = (
        stale(&source, &tier).build().unwrap(),
        stale(&source, &tier).build().unwrap(),
    );
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let gate = tier.gate("acquire", When::Before);
    entry(&a).await;
    gate.reached().await;
    entry(&b).await;
    settle().await;
    assert_eq!(entry(&b).await, ("new".to_owned(), Freshness::Fresh));
    gate.open();
    settle().await;
    assert_eq!(entry(&a).await, ("new".to_owned(), Freshness::Fresh));
    assert_eq!(source.calls(), 2);
    validate(&[&a, &b], &tier).await;
}

/// A message that is lost with the connection: what a refresh has put up from L1 is as good as L1.
#[tokio::test(start_paused = true)]
async fn what_a_refresh_offers_from_l1_is_silent_when_l1_is() {
    let tier = InProcess::wired(0);
    let source = Database::new(false, steps(&["old", "new"]));
    let build = || {
        let settings = settings(&source).ttl(MS * 500).stale_while_revalidate(TTL);
        settings.l2(tier.clone()).build().unwrap()
    };
    let (cache, writer) = (build(), build());
    for (wire, node) in [&cache, &writer].into_iter().enumerate() {
        let engine = node.engine();
        engine.attach(engine.remote.as_ref().unwrap()).await;
        tier.connect(wire);
    }
    tokio::time::sleep(MS * 100).await;
    tier.hand_over_all();
    cache.get(&1).await.unwrap();
    tokio::time::sleep(MS * 500).await;
    let gate = tier.gate("get", When::Before);
    assert_eq!(entry(&cache).await.1, Freshness::Stale);
    gate.reached().await;
    writer.invalidate(&1).await.unwrap();
    tier.cut(0);
    assert!(cache.peek(&1).is_none());
    let got = spawn_get(&cache, 1);
    settle().await;
    assert!(!got.is_finished());
    gate.open();
    assert_eq!(text(&got.await.unwrap()), Some("new"));
    validate(&[&cache, &writer], &tier).await;
}

/// The flight has not begun to read, so the gap leaves it in the table; what it has from L1 is older.
#[tokio::test(start_paused = true)]
async fn what_a_flight_offers_from_l1_does_not_survive_a_gap() {
    let (tier, source) = ground(false, &["old"]);
    let (cache, writer) = (stale(&source, &tier).build().unwrap(), node(&source, &tier));
    cache.get(&1).await.unwrap();
    let gate = tier.gate("marks", When::Before);
    // One that takes no offer has one for whoever joins it.
    let past = spawn_get_with(&cache, Read::fresh().skip_l1());
    gate.reached().await;
    tier.mute();
    writer.insert(1, "inserted".to_owned()).await.unwrap();
    cache.engine().start_new_epoch();
    let got = spawn_get(&cache, 1);
    settle().await;
    assert!(!got.is_finished());
    assert_eq!(cache.engine().flights.len(), 1, "it has joined");
    gate.open();
    for got in [past, got] {
        assert_eq!(text(&got.await.unwrap()), Some("inserted"));
    }
    validate(&[&cache, &writer], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_offer_is_not_taken_after_its_tag_was_invalidated() {
    let source = Database::new(true, steps(&["old", "new"]));
    let cache = etags(&source).build().unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(TTL).await;
    assert_eq!(entry(&cache).await.1, Freshness::Stale);
    source.loading().await;
    cache.invalidate_tag("team:7").await.unwrap();
    let got = spawn_get(&cache, 1);
    settle().await;
    assert!(!got.is_finished());
    source.go.add_permits(2);
    assert_eq!(text(&got.await.unwrap()), Some("new"));
    validate(&[&cache], &InProcess::new()).await;
}

/// The bound of refreshes that nobody waits for: without a place a flight comes down with what it
/// has found, which is not what everyone who joined it has asked for.
#[tokio::test(start_paused = true)]
async fn without_a_place_a_stale_entry_of_l2_is_answered_and_refreshed_for_who_is_strict() {
    let (tier, source) = ground(false, &["old", "new"]);
    let cache = stale(&source, &tier).l1_capacity(0).build().unwrap();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let places = all_places_behind(&cache);
    for _ in 0..3 {
        assert_eq!(entry(&cache).await, ("old".to_owned(), Freshness::Stale));
        settle().await;
    }
    assert_eq!(source.calls(), 1);
    let gate = tier.gate("get", When::After);
    let usual = spawn_get(&cache, 1);
    gate.reached().await;
    let strict = spawn_get_with(&cache, Read::fresh());
    settle().await;
    gate.open();
    assert_eq!(text(&usual.await.unwrap()), Some("old"));
    assert_eq!(text(&strict.await.unwrap()), Some("new"));
    assert_eq!(source.calls(), 2);
    drop(places);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_asks_what_was_invalidated_as_a_whole() {
    for tag in [None, Some("team:7")] {
        let (tier, source) = ground(false, &["old", "new"]);
        // What has no tag is asked for nothing but the marks.
        let build = || match tag {
            Some(_) => etags(&source).l2(tier.clone()).build().unwrap(),
            None => stale(&source, &tier).build().unwrap(),
        };
        let (a, b) = (build(), build());
        a.get(&1).await.unwrap();
        b.get(&1).await.unwrap();
        tier.mute();
        match tag {
            Some(tag) => b.invalidate_tag(tag).await.unwrap(),
            None => b.invalidate_all().await.unwrap(),
        }
        assert_eq!(text(&a.get(&1).await), Some("old"), "nobody has told it");
        let got = a.get_with(&1, Read::new().skip_l1()).await;
        assert_eq!(text(&got), Some("new"), "{tag:?}");
        validate(&[&a, &b], &tier).await;
    }
}

/// What begins after it is joined only if it is of its kind: another one believes the messages.
#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_joins_nobody_who_trusts_messages() {
    let (tier, source) = ground(false, &["old", "new"]);
    let (a, b) = (
        stale(&source, &tier).l1_capacity(0).build().unwrap(),
        node(&source, &tier),
    );
    a.get(&1).await.unwrap();
    let gate = tier.gate("get", When::After);
    let twice = {
        let a = a.clone();
        tokio::spawn(async move { [a.get(&1).await, a.get(&1).await] })
    };
    gate.reached().await;
    // With company the flight has a task, and its leader is in the queue before the look-up past L1.
    let company = spawn_get_with(&a, Read::new());
    settle().await;
    tier.mute();
    b.invalidate_all().await.unwrap();
    let past = spawn_get_with(&a, Read::fresh().skip_l1());
    settle().await;
    let second = tier.gate("get", When::After);
    gate.open();
    // It has begun after the look-up past L1, and before that one has looked again.
    second.reached().await;
    settle().await;
    second.open();
    for got in twice.await.unwrap() {
        assert_eq!(text(&got), Some("old"));
    }
    assert_eq!(text(&company.await.unwrap()), Some("old"));
    assert_eq!(text(&past.await.unwrap()), Some("new"));
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_takes_nothing_of_l1_in_whatever_state() {
    for after in [Duration::ZERO, TTL, TTL * 2] {
        let (tier, source) = ground(false, &["old", "new"]);
        let (a, b) = (
            stale(&source, &tier).build().unwrap(),
            stale(&source, &tier).build().unwrap(),
        );
        a.get(&1).await.unwrap();
        tokio::time::advance(after).await;
        // Something that a lost message would have told.
        tier.mute();
        b.insert(1, "inserted".to_owned()).await.unwrap();
        let got = a.get_with(&1, Read::new().skip_l1()).await;
        assert_eq!(text(&got), Some("inserted"), "{after:?}");
        assert_eq!(text(&a.get(&1).await), Some("inserted"), "L1 keeps it");
        validate(&[&a, &b], &tier).await;
    }
}

/// A strict look-up past L1 takes no offer, so its flight has what L1 has for those who join it.
#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_takes_no_offer_of_l1_from_a_strict_one() {
    let (tier, source) = ground(false, &["old"]);
    let (a, b) = (stale(&source, &tier).build().unwrap(), node(&source, &tier));
    a.get(&1).await.unwrap();
    let gate = tier.gate("get", When::After);
    let before = spawn_get_with(&a, Read::new().skip_l1());
    gate.reached().await;
    tier.mute();
    b.insert(1, "inserted".to_owned()).await.unwrap();
    // Both wait until the flight that began before them ends. The first then begins one, and the
    // second joins it.
    let strict = spawn_get_with(&a, Read::fresh().skip_l1());
    settle().await;
    let past = spawn_get_with(&a, Read::new().skip_l1());
    settle().await;
    let second = tier.gate("get", When::Before);
    gate.open();
    second.reached().await;
    settle().await;
    assert!(!past.is_finished());
    second.open();
    assert_eq!(text(&before.await.unwrap()), Some("old"));
    for got in [strict, past] {
        assert_eq!(text(&got.await.unwrap()), Some("inserted"));
    }
    validate(&[&a, &b], &tier).await;
}

/// A flight looks whether somebody strict waits for it before it ends with a stale entry. Nothing is
/// awaited between the two, but another thread may join in between.
#[tokio::test(start_paused = true)]
async fn a_strict_look_up_takes_nothing_stale_from_a_flight_that_did_not_see_it_join() {
    let (tier, source) = ground(false, &["old"]);
    let cache = stale(&source, &tier).build().unwrap();
    cache.get(&1).await.unwrap();
    let engine = cache.engine();
    for freshness in [Freshness::Fresh, Freshness::Stale, Freshness::StaleOnError] {
        let (key, now) = (cache.shell.key(1), Instant::now());
        let mut answer = engine.peek(engine.l1.get(&key, now).unwrap(), now).unwrap();
        answer.freshness = freshness;
        let flight = Flight::new(key, Purpose::Any, now);
        flight.complete(Outcome::Completed(Ok(answer)));
        let takes = |read| {
            let want = Want {
                read,
                load: false,
                since: 0,
            };
            match engine.progress(&flight, Role::Joins, &want) {
                Progress::Pending => panic!("it is completed"),
                Progress::Answer(_) => true,
                Progress::LookAgain => false,
            }
        };
        assert!(takes(Read::new()));
        assert_eq!(takes(Read::fresh()), freshness == Freshness::Fresh);
    }
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_absence_has_no_stale_windows_where_it_was_read_from_l2_either() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Missing, Step::Fail("down")]),
    );
    let build = || stale(&source, &tier).negative_ttl(TTL).build().unwrap();
    let (a, b) = (build(), build());
    assert_eq!(a.get(&1).await.unwrap(), None);
    tokio::time::advance(TTL / 2).await;
    assert_eq!(b.get(&1).await.unwrap(), None);
    assert_eq!(source.calls(), 1);
    tokio::time::advance(TTL / 2).await;
    assert!(b.get(&1).await.is_err());
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_entry_is_another_version_with_the_same_value() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(
            true,
            [Step::Found("old"), Step::Missing, Step::Found("new")],
        ),
    );
    let build = || etags(&source).l2(tier.clone()).build().unwrap();
    let (a, b, cold) = (build(), build(), build());
    source.answer();
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    let first = tier.raw(KEY).unwrap();
    tokio::time::advance(TTL).await;
    for cache in [&a, &b] {
        assert_eq!(entry(cache).await, ("old".to_owned(), Freshness::Stale));
        settle().await;
    }
    source.answer();
    settle().await;
    for cache in [&a, &b, &cold] {
        assert_eq!(entry(cache).await, ("old".to_owned(), Freshness::Fresh));
    }
    settle().await;
    assert_eq!(source.calls(), 2, "who has waited does not ask again");
    let unchanged: u64 = [&a, &b].map(|cache| cache.stats().unchanged).iter().sum();
    assert_eq!(unchanged, 1);
    let second = tier.raw(KEY).unwrap();
    assert_eq!(first[HEADER..], second[HEADER..]);
    let parse = |record: &[u8]| Header::parse(record, record::key_hash(KEY)).unwrap().0;
    let (first, second) = (parse(&first), parse(&second));
    assert_ne!(first.token, second.token);
    assert_eq!(second.created_ms - first.created_ms, 10_000);
    assert_eq!((second.version, second.tags), (7, 1));
    // Its tags are with it in L1, too.
    cold.invalidate_tag("team:7").await.unwrap();
    source.answer();
    for cache in [&a, &b, &cold] {
        assert!(cache.peek(&1).is_none());
        assert_eq!(text(&cache.get(&1).await), Some("new"));
    }
    validate(&[&a, &b, &cold], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn unchanged_without_a_previous_one_is_an_error() {
    struct Lazy;
    impl Loader for Lazy {
        type Key = u64;
        type Value = String;
        type Error = BoxError;

        async fn load(&self, _: &u64) -> Result<Loaded<String>, BoxError> {
            Ok(Loaded::unchanged())
        }
    }
    for tier in [None, Some(InProcess::new())] {
        let mut settings = Cache::builder("users", Lazy);
        if let Some(tier) = &tier {
            settings = settings.l2(tier.clone());
        }
        let cache = settings.build().unwrap();
        let got = cache.get(&1).await;
        assert!(
            matches!(got, Err(Error::UnchangedWithoutPrevious)),
            "{got:?}"
        );
        let insert = cache.insert(1, Loaded::unchanged()).await;
        assert!(insert.is_err());
        assert!(cache.peek(&1).is_none());
        let tier = tier.unwrap_or_default();
        assert_ne!(raw_kind(&tier, KEY), Some(Kind::Negative));
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_ends_a_row_of_failures() {
    let down = Step::Fail("down");
    let mut all = vec![down.clone(); 4];
    all.extend([Step::Found("value"), down]);
    let source = Database::new(false, all);
    let backoff = MS * 100;
    let cache = settings(&source).error_backoff(backoff).build().unwrap();
    for hold in [1, 1, 1, 2] {
        assert!(cache.refresh(&1).await.is_err());
        tokio::time::advance(backoff * hold).await;
    }
    cache.refresh(&1).await.unwrap();
    assert!(cache.refresh(&1).await.is_err());
    assert_eq!(source.calls(), 6);
    tokio::time::advance(backoff).await;
    assert!(cache.refresh(&1).await.is_err());
    assert_eq!(source.calls(), 7, "the first of another row");
    validate(&[&cache], &InProcess::new()).await;
}

/// L1 was not told to be calm: the load that failed was a caller's.
#[tokio::test(start_paused = true)]
async fn a_hit_begins_no_refresh_while_an_error_is_held() {
    let source = Database::new(false, [Step::Found("old"), Step::Fail("down")]);
    let cache = lasting(settings(&source)).build().unwrap();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    assert!(cache.refresh(&1).await.is_err());
    for _ in 0..3 {
        assert_eq!(entry(&cache).await, ("old".to_owned(), Freshness::Stale));
        settle().await;
    }
    assert_eq!(source.calls(), 2);
    tokio::time::advance(MS * 200).await;
    entry(&cache).await;
    settle().await;
    assert_eq!(source.calls(), 3);
    validate(&[&cache], &InProcess::new()).await;
}

/// With an entry the mark of the failure is in the claim, without one in the place of the record.
#[tokio::test(start_paused = true)]
async fn a_row_of_failures_goes_on_in_another_process() {
    for with_entry in [true, false] {
        let (tier, source) = (InProcess::new(), Database::new(false, [Step::Fail("down")]));
        let backoff = MS * 100;
        let build = || {
            let settings = settings(&source).error_backoff(backoff);
            settings.l2(tier.clone()).build().unwrap()
        };
        let (a, b) = (build(), build());
        if with_entry {
            a.insert(1, "old".to_owned()).await.unwrap();
        }
        for hold in [1, 1, 1, 2] {
            assert!(a.refresh(&1).await.is_err());
            tokio::time::advance(backoff * hold).await;
        }
        assert!(matches!(b.refresh(&1).await, Err(Error::Load(_))));
        assert_eq!(source.calls(), 5);
        for (after, calls) in [(3, 5), (1, 6)] {
            tokio::time::advance(backoff * after).await;
            assert!(b.refresh(&1).await.is_err());
            assert_eq!(source.calls(), calls, "with an entry: {with_entry}");
        }
        validate(&[&a, &b], &tier).await;
    }
}

/// A flight that finds an entry past its TTL in L2, invalidated before it could put it up.
#[tokio::test(start_paused = true)]
async fn what_was_invalidated_before_it_was_put_up_does_not_enter_l1() {
    let (tier, source) = ground(true, &["old", "new"]);
    let (a, cold) = (
        stale(&source, &tier).build().unwrap(),
        stale(&source, &tier).build().unwrap(),
    );
    source.answer();
    a.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let gate = tier.gate("get", When::After);
    let early = spawn_get(&cold, 1);
    gate.reached().await;
    cold.invalidate(&1).await.unwrap();
    gate.open();
    assert_eq!(text(&early.await.unwrap()), Some("old"), "it came before");
    assert!(cold.peek(&1).is_none());
    let late = spawn_get(&cold, 1);
    settle().await;
    assert!(!late.is_finished());
    source.go.add_permits(2);
    assert_eq!(text(&late.await.unwrap()), Some("new"));
    validate(&[&a, &cold], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_joins_no_flight_that_only_reads() {
    let (tier, source) = ground(false, &["old", "new"]);
    let (a, cold) = (node(&source, &tier), node(&source, &tier));
    a.get(&1).await.unwrap();
    let gate = tier.gate("get", When::After);
    let read = spawn_get(&cold, 1);
    gate.reached().await;
    let refresh = spawn_refresh(&cold);
    settle().await;
    gate.open();
    assert_eq!(text(&read.await.unwrap()), Some("old"));
    assert_eq!(text(&refresh.await.unwrap()), Some("new"));
    validate(&[&a, &cold], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn without_l1_a_held_error_is_answered_with_what_l2_has_and_loads_nothing() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("old"), Step::Fail("down")]),
    );
    let cache = settings(&source)
        .ttl(TTL)
        .stale_if_error(TTL)
        .error_backoff(MS * 1_000)
        .l1_capacity(0)
        .l2(tier.clone())
        .build()
        .unwrap();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    for _ in 0..3 {
        let expected = ("old".to_owned(), Freshness::StaleOnError);
        assert_eq!(entry(&cache).await, expected);
        assert_eq!(source.calls(), 2);
    }
    assert_eq!(cache.stats().errors_held, 0, "nobody was told");
    assert!(cache.get_with(&1, Read::fresh()).await.is_err());
    // The mark of the failure, too: this process knows by itself.
    tier.delete_raw(KEY);
    tier.delete_raw(&guard());
    assert!(cache.get(&1).await.is_err());
    assert_eq!(source.calls(), 2, "it failed a moment ago");
    assert_eq!(cache.stats().errors_held, 2);
    tokio::time::advance(MS * 1_000).await;
    assert!(cache.get(&1).await.is_err());
    assert_eq!(source.calls(), 3);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_whose_value_is_not_to_be_stored_takes_the_old_one_out_of_l2() {
    #[derive(Clone)]
    struct Once(Database);
    impl Loader for Once {
        type Key = u64;
        type Value = String;
        type Error = BoxError;

        async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
            self.0.load(key).await
        }

        async fn reload(&self, key: &u64, _: &Entry<String>) -> Result<Loaded<String>, BoxError> {
            Ok(self.0.load(key).await?.do_not_store())
        }
    }
    let (tier, source) = ground(false, &["old", "secret"]);
    let settings = Cache::builder("users", Once(source.clone())).ttl_jitter(0.0);
    let cache = lasting(settings).l2(tier.clone()).build().unwrap();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let got = cache.get_with(&1, Read::fresh()).await;
    assert_eq!(text(&got), Some("secret"));
    assert!(tier.is_empty());
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn without_l2_nothing_is_refreshed_before_its_time() {
    let (tier, source) = ground(false, &["old", "new"]);
    let cache = stale(&source, &tier).build().unwrap();
    cache.get(&1).await.unwrap();
    for time in [TTL / 2, TTL / 2] {
        let loads = source.calls();
        tokio::time::advance(time).await;
        let local = cache
            .engine()
            .l1_entry(&cache.shell.key(1), Instant::now())
            .unwrap();
        tier.fail("get", When::Before, RemoteKind::Unreachable);
        cache
            .engine()
            .refresh_in_background(cache.shell.key(1), &local);
        settle().await;
        let due = Instant::now() - cache.engine().created_at >= TTL;
        assert_eq!(source.calls() - loads, usize::from(due));
    }
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_nobody_waits_for_does_not_load_without_its_claim() {
    let (tier, source) = ground(false, &["old", "new"]);
    let cache = stale(&source, &tier).lease_wait(MS * 500).build().unwrap();
    cache.get(&1).await.unwrap();
    let mut others = Header::plain(Kind::Lease, [7; 16], record::key_hash(&guard()), 0);
    others.baseline = cache.engine().watermarks.baseline();
    tokio::time::advance(TTL).await;
    tier.set_raw(&guard(), &others.to_record(), 5_000);
    for _ in 0..40 {
        assert_eq!(entry(&cache).await.1, Freshness::Stale);
        tokio::time::sleep(MS * 100).await;
    }
    let stats = cache.stats();
    assert_eq!((source.calls(), stats.lease_wait_exceeded), (1, 0));
    tokio::time::sleep(MS * 2_000).await;
    entry(&cache).await;
    settle().await;
    assert_eq!(entry(&cache).await.1, Freshness::Fresh);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn closing_ends_a_refresh_that_waits_for_a_place() {
    let source = Database::new(true, steps(&["old", "new"]));
    let settings = lasting(settings(&source)).max_concurrent_loads(1);
    let cache = settings.build().unwrap();
    cache.insert(1, "old".to_owned()).await.unwrap();
    tokio::time::advance(TTL).await;
    let cold = spawn_get(&cache, 2);
    source.loading().await;
    assert_eq!(entry(&cache).await.1, Freshness::Stale);
    settle().await;
    assert_eq!(cache.engine().flights.len(), 2);
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close().await }
    });
    settle().await;
    assert_eq!(cache.engine().flights.len(), 1);
    assert!(!closing.is_finished(), "somebody waits for the other");
    source.answer();
    cold.await.unwrap().unwrap();
    closing.await.unwrap();
    assert_eq!(source.calls(), 1);
    validate(&[&cache], &InProcess::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_is_followed_by_its_value_or_an_invalidation_and_a_failed_one_by_the_latter() {
    for shared in [true, false] {
        let (tier, source) = ground(false, &["old", "loaded", "loaded", "loaded"]);
        let settings = lasting(settings(&source));
        let cache = if shared {
            settings.l2(tier.clone()).build().unwrap()
        } else {
            settings.build().unwrap()
        };
        cache.get(&1).await.unwrap();
        let written = async { Ok::<_, Infallible>("written".to_owned()) };
        cache.write(1, written).await.unwrap();
        assert_eq!(
            entry(&cache).await,
            ("written".to_owned(), Freshness::Fresh)
        );
        assert_eq!(source.calls(), 1);
        // It may have been carried out after all.
        let broken = async { Err::<String, _>(BoxError::from("broken")) };
        let failed = cache.write(1, broken).await;
        assert!(matches!(failed, Err(WriteError::Source(_))));
        assert!(cache.peek(&1).is_none());
        assert_eq!(entry(&cache).await.0, "loaded");
        let panics = || -> Result<String, Infallible> { panic!("as the test asks") };
        let failed = cache.write(1, async move { panics() }).await;
        assert!(matches!(failed, Err(WriteError::Panicked)));
        assert!(cache.peek(&1).is_none());
        assert_eq!(entry(&cache).await.0, "loaded");
        let done = cache.invalidate_after(1, async { Ok::<_, Infallible>(5) });
        assert!(matches!(done.await, Ok(5)));
        assert!(cache.peek(&1).is_none());
        assert!(tier.is_empty());
        assert_eq!(source.calls(), 3);
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_write_begins_when_it_has_returned() {
    let (tier, source) = ground(true, &["old", "new"]);
    let cache = stale(&source, &tier).build().unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    source.loading().await;
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let writing = tokio::spawn({
        let cache = cache.clone();
        async move {
            let write = async move { gone.await.map(drop) };
            cache.refresh_after(1, write).await
        }
    });
    settle().await;
    assert_eq!(entry(&cache).await, ("old".to_owned(), Freshness::Fresh));
    assert_eq!(source.calls(), 1);
    go.send(()).unwrap();
    source.loading().await;
    assert!(!writing.is_finished());
    assert!(cache.peek(&1).is_none(), "it is expired while one loads");
    source.answer();
    writing.await.unwrap().unwrap();
    assert_eq!(entry(&cache).await, ("new".to_owned(), Freshness::Fresh));
    validate(&[&cache], &tier).await;
}

/// Another writer was later, in the database too: that is what stays, and no error.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_superseded_is_carried_out_all_the_same() {
    let (tier, source) = ground(false, &["old"]);
    let cache = node(&source, &tier);
    let write = |text: &str, version| {
        let row = Loaded::found(text.to_owned()).version(version);
        async move { Ok::<_, Infallible>(row) }
    };
    cache.write(1, write("later", 8)).await.unwrap();
    cache.write(1, write("earlier", 7)).await.unwrap();
    assert_eq!(entry(&cache).await.0, "later");
    assert_eq!(source.calls(), 0);
    validate(&[&cache], &tier).await;
}

/// What is known to be out of date is not answered again because its successor may not be kept.
#[tokio::test(start_paused = true)]
async fn a_refresh_whose_outcome_is_not_kept_leaves_nothing_old_behind() {
    for shared in [true, false] {
        let tier = InProcess::new();
        let source = Database::new(false, [Step::Found("old"), Step::Missing]);
        let settings = settings(&source)
            .ttl(Duration::from_secs(10))
            .stale_while_revalidate(Duration::from_secs(10))
            .negative_ttl(Duration::ZERO);
        let cache = if shared {
            settings.l2(tier.clone()).build().unwrap()
        } else {
            settings.build().unwrap()
        };
        assert_eq!(text(&cache.get(&1).await), Some("old"));
        tokio::time::advance(Duration::from_secs(11)).await;
        let strict = Read::fresh();
        assert_eq!(cache.get_with(&1, strict).await.unwrap(), None);
        assert_eq!(cache.get(&1).await.unwrap(), None, "shared: {shared}");
        assert!(tier.is_empty());
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_a_refresh_that_somebody_has_joined_for_good() {
    let tier = InProcess::new();
    let source = Database::new(true, [Step::Found("old"), Step::Found("new")]);
    let settings = settings(&source).ttl(Duration::from_secs(10));
    let settings = settings.stale_while_revalidate(Duration::from_secs(10));
    let cache = settings.l2(tier.clone()).build().unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(Duration::from_secs(11)).await;
    cache.get(&1).await.unwrap();
    source.loading().await;
    let waits = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_with(&1, Read::fresh()).await })
    };
    settle().await;
    let closes = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.close().await })
    };
    settle().await;
    assert!(!closes.is_finished());
    source.answer();
    assert_eq!(text(&waits.await.unwrap()), Some("new"));
    closes.await.unwrap();
    validate(&[&cache], &tier).await;
}

/// What L1 has is nothing to a look-up past it, so its flight is not one that nobody waits for.
#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_is_answered_however_many_refreshes_run() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("value")]),
    );
    let settings = settings(&source).ttl(Duration::from_secs(10));
    let cache = settings.l2(tier.clone()).build().unwrap();
    cache.get(&1).await.unwrap();
    let engine = cache.engine();
    let most = u32::try_from(crate::engine::core::MAX_BACKGROUND).unwrap();
    let _busy = engine.background.try_acquire_many(most).unwrap();
    let past = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_with(&1, Read::new().skip_l1()).await })
    };
    settle().await;
    assert!(past.is_finished(), "it goes round and round");
    assert_eq!(text(&past.await.unwrap()), Some("value"));
    validate(&[&cache], &tier).await;
}
