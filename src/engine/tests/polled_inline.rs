//! Flights that are polled inline: the leader's own future polls its flight, until another caller
//! needs the flight and it moves to a task.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;

use super::*;

type Call = Pin<Box<dyn Future<Output = Got> + Send>>;

fn call(cache: &Users) -> Call {
    let cache = cache.clone();
    Box::pin(async move { cache.get(&1).await })
}

fn poll(call: &mut Call) -> Poll<Got> {
    call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// The number of tasks of this runtime.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// A leader that was polled once and whose read waits at the gate. The number is that of the tasks
/// before.
async fn inline_leader() -> (InProcess, Users, Gate, Call, usize) {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = node(&source, &tier);
    // The first look-up of a cache begins its background tasks.
    cache.get(&2).await.unwrap();
    settle().await;
    let gate = tier.gate("get", When::Before);
    let before = tasks();
    let mut leader = call(&cache);
    assert!(poll(&mut leader).is_pending());
    gate.reached().await;
    (tier, cache, gate, leader, before)
}

#[tokio::test(start_paused = true)]
async fn a_leader_alone_needs_no_task() {
    let (tier, cache, gate, mut leader, before) = inline_leader().await;
    assert_eq!(tasks(), before);
    assert!(poll(&mut leader).is_pending());
    gate.open();
    assert_eq!(text(&leader.await), Some("v"));
    validate(&[&cache], &tier).await;
}

/// A leader is no longer polled while another call asks for its key. Returns the commands that were
/// sent since.
async fn stop_polling_the_leader(read: Read) -> (u64, Users) {
    let (tier, cache, gate, leader, before) = inline_leader().await;
    let commands = tier.commands();
    let other = cache.clone();
    let other = tokio::spawn(async move { other.get_with(&1, read).await });
    settle().await;
    assert_eq!(
        tasks(),
        before + 2,
        "that of the flight and that of the other call"
    );
    gate.open();
    assert_eq!(text(&other.await.unwrap()), Some("v"));
    let sent = tier.commands() - commands;
    assert_eq!(text(&leader.await), Some("v"));
    validate(&[&cache], &tier).await;
    (sent, cache)
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_no_longer_polled_delays_no_caller_that_joins() {
    let (sent, cache) = stop_polling_the_leader(Read::new()).await;
    assert_eq!(sent, 2, "a lease and a fill: the read is not repeated");
    assert_eq!(cache.stats().loads, 2);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_no_longer_polled_delays_no_caller_that_waits_for_its_end() {
    let (_, cache) = stop_polling_the_leader(Read::fresh().skip_l1()).await;
    assert_eq!(cache.stats().loads, 2);
}

#[tokio::test(start_paused = true)]
async fn the_flight_of_a_dropped_leader_moves_to_a_task() {
    let (tier, cache, gate, leader, before) = inline_leader().await;
    drop(leader);
    assert_eq!(tasks(), before + 1);
    gate.open();
    settle().await;
    assert!(cache.peek(&1).is_some());
    validate(&[&cache], &tier).await;
}

/// The flight is still in the table, or an invalidation has detached it.
#[tokio::test(start_paused = true)]
async fn a_leader_that_is_no_longer_polled_does_not_keep_a_cache_from_closing() {
    for change in ["nothing", "the key", "everything"] {
        let (tier, cache, gate, leader, _) = inline_leader().await;
        match change {
            "the key" => cache.invalidate(&1).await.unwrap(),
            "everything" => cache.invalidate_all().await.unwrap(),
            _ => {}
        }
        let closing = cache.clone();
        let closing = tokio::spawn(async move { closing.close().await });
        settle().await;
        gate.open();
        closing.await.unwrap();
        assert_eq!(text(&leader.await), Some("v"), "{change}");
        validate(&[&cache], &tier).await;
    }
}

/// A timer can only begin inside a runtime.
#[tokio::test(start_paused = true)]
async fn a_leader_that_is_polled_outside_a_runtime_goes_on_inside() {
    let (tier, cache, gate, mut leader, before) = inline_leader().await;
    let polled = std::thread::spawn(move || {
        assert!(poll(&mut leader).is_pending());
        leader
    });
    let leader = polled.join().unwrap();
    assert_eq!(tasks(), before + 1);
    gate.open();
    assert_eq!(text(&leader.await), Some("v"));
    validate(&[&cache], &tier).await;
}

type Hook = Box<dyn Fn() + Send>;
type Closing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A key that runs a hook when it is cloned or encoded.
#[derive(Default)]
struct Hooked {
    on_clone: Arc<parking_lot::Mutex<Option<Hook>>>,
    on_encode: Arc<parking_lot::Mutex<Option<Hook>>>,
}

impl Clone for Hooked {
    fn clone(&self) -> Self {
        if let Some(hook) = &*self.on_clone.lock() {
            hook();
        }
        Self {
            on_clone: Arc::clone(&self.on_clone),
            on_encode: Arc::clone(&self.on_encode),
        }
    }
}

impl PartialEq for Hooked {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Hooked {}

impl std::hash::Hash for Hooked {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl crate::CacheKey for Hooked {
    fn encode(&self, key: &mut crate::KeyBuf) {
        if let Some(hook) = &*self.on_encode.lock() {
            hook();
        }
        key.push_bytes(b"hooked");
    }
}

fn hooked(tier: &InProcess) -> Cache<Hooked, u64, BoxError> {
    let load = crate::loader_fn(|_: Hooked| async { Ok::<_, BoxError>(Some(1_u64)) });
    let builder = Cache::builder("users", load).l2(tier.clone());
    builder.build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_inline_flight_that_panics_is_an_error_for_its_leader_and_leaves_nothing() {
    let (tier, key) = (InProcess::new(), Hooked::default());
    let (a, b) = (hooked(&tier), hooked(&tier));
    a.get(&key).await.unwrap();
    let gate = tier.gate("get", When::After);
    let mut leader = Box::pin(b.get(&key));
    // Until the cache listens to the bus, and the read waits at the gate.
    for _ in 0..10 {
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(leader.as_mut().poll(cx).is_pending());
        settle().await;
    }
    gate.reached().await;
    *key.on_clone.lock() = Some(Box::new(|| panic!("as the test asks")));
    gate.open();
    let error = leader.await.unwrap_err();
    assert!(matches!(error, Error::LoadPanicked), "{error:?}");
    *key.on_clone.lock() = None;
    assert_eq!(b.get(&key).await.unwrap().as_deref(), Some(&1));
    assert_eq!(b.engine().flights.len(), 0);
    assert_eq!(b.engine().tasks.running(), 0);
}

/// When the cache looks for flights without a task, this one is not yet in the table.
#[tokio::test(start_paused = true)]
async fn an_inline_flight_that_begins_while_the_cache_closes_is_not_missed() {
    let (tier, key) = (InProcess::new(), Hooked::default());
    hooked(&tier).get(&key).await.unwrap();
    let cache = hooked(&tier);
    let gate = tier.gate("get", When::Before);
    let closing: Arc<parking_lot::Mutex<Option<Closing>>> = Arc::default();
    let hook = {
        let (cache, closing) = (cache.clone(), Arc::clone(&closing));
        move || {
            let cache = cache.clone();
            let mut close: Closing = Box::pin(async move { cache.close().await });
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(close.as_mut().poll(cx).is_pending());
            *closing.lock() = Some(close);
        }
    };
    *key.on_encode.lock() = Some(Box::new(hook));
    let mut leader = Box::pin(cache.get(&key));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(leader.as_mut().poll(cx).is_pending());
    gate.reached().await;
    *key.on_encode.lock() = None;
    gate.open();
    let close = closing.lock().take().expect("it closes");
    close.await;
    assert_eq!(leader.await.unwrap().as_deref(), Some(&1));
}
