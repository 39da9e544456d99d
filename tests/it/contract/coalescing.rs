//! One load for all concurrent callers of a key, and no caller depends on another.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidegate::{BoxError, Error, Loaded, Source, loader_fn};
use tokio::time::{Instant, sleep};

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    ten_concurrent_misses_are_one_read_and_one_load
    a_thousand_concurrent_misses_are_one_read_and_one_load
    ten_thousand_concurrent_misses_are_one_read_and_one_load
    an_error_is_shared_by_all_waiters_and_held_off
    a_thousand_callers_of_a_failing_load_are_answered_when_it_fails
    the_first_caller_may_go_away
    the_last_caller_may_go_away
    all_callers_but_one_may_go_away
    all_callers_may_go_away
    a_panic_reaches_every_waiter_and_the_next_get_loads_again
    a_load_that_hangs_is_cut_off_and_its_key_is_free_again
    a_loader_that_asks_for_its_own_key_gets_a_load_cycle_error
    a_loader_may_ask_for_another_key
}

async fn misses(backend: Backend, how_many: usize) {
    let db = Db::default();
    let a = backend.node(&db).await;
    // The first load opens the connections, subscribes and stores the scripts.
    a.get(2).await.expect("a load");
    let mut counter = backend.command_counter();
    let gate = db.gate();
    let callers = a.callers(how_many, 1).await;
    gate.reached().await;
    gate.open();
    for caller in callers {
        assert_eq!(value(answer(caller).await), "row 1");
    }
    let (loads, commands) = (db.loads(), counter.commands());
    assert_eq!(
        (loads, commands),
        (2, 3),
        "loads, and commands: one read, one lease, one fill"
    );
    assert_eq!(a.stats().coalesced, how_many as u64 - 1);
    backend.check(&[&a]).await;
}

async fn ten_concurrent_misses_are_one_read_and_one_load(backend: Backend) {
    misses(backend, 10).await;
}

async fn a_thousand_concurrent_misses_are_one_read_and_one_load(backend: Backend) {
    misses(backend, 1_000).await;
}

async fn ten_thousand_concurrent_misses_are_one_read_and_one_load(backend: Backend) {
    misses(backend, 10_000).await;
}

async fn an_error_is_shared_by_all_waiters_and_held_off(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            builder.error_backoff(Duration::from_secs(60))
        })
        .await;
    db.behave(Behaviour {
        fails: true,
        ..Behaviour::default()
    });
    let gate = db.gate();
    let callers = a.callers(50, 1).await;
    gate.reached().await;
    gate.open();
    let mut errors: Vec<Arc<BoxError>> = Vec::new();
    for caller in callers {
        match answer(caller).await {
            Err(Error::Load(error)) => errors.push(error),
            other => panic!("{other:?}"),
        }
    }
    assert!(
        errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])),
        "one error, shared"
    );
    assert_eq!(errors[0].to_string(), "the database is down");
    // Later callers get the error without another load, until an invalidation.
    for _ in 0..50 {
        assert!(matches!(a.get(1).await, Err(Error::Load(_))));
    }
    assert_eq!((db.loads(), a.stats().errors_held), (1, 50));
    db.behave(Behaviour::default());
    a.invalidate(&1).await.expect("an invalidation");
    assert_eq!(value(a.get(1).await), "row 1");
    backend.check(&[&a]).await;
}

async fn a_thousand_callers_of_a_failing_load_are_answered_when_it_fails(backend: Backend) {
    let db = Db::default();
    let takes = Duration::from_millis(100);
    db.behave(Behaviour {
        fails: true,
        takes,
        ..Behaviour::default()
    });
    let a = backend
        .node_with(&db, |builder| {
            builder.error_backoff(Duration::from_secs(60))
        })
        .await;
    let begun = Instant::now();
    for caller in a.callers(1_000, 1).await {
        assert!(matches!(answer(caller).await, Err(Error::Load(_))));
    }
    let took = begun.elapsed();
    assert_eq!(db.loads(), 1);
    // One load after the other would take 100 seconds.
    assert!(
        took >= takes && took < takes + Duration::from_secs(2),
        "{took:?}"
    );
    backend.check(&[&a]).await;
}

/// Five callers of one load. The callers that `leave` chooses are dropped while the load runs.
async fn dropped(backend: Backend, leave: impl Fn(usize) -> bool) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let gate = db.gate();
    let mut stay = Vec::new();
    for (at, caller) in a.callers(5, 1).await.into_iter().enumerate() {
        if leave(at) {
            caller.abort();
            assert!(caller.await.is_err_and(|ended| ended.is_cancelled()));
        } else {
            stay.push(caller);
        }
    }
    gate.reached().await;
    gate.open();
    for caller in stay {
        assert_eq!(value(answer(caller).await), "row 1");
    }
    eventually("the value is in L1", async || a.peek(&1).is_some()).await;
    let entry = b.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!((entry.source(), db.loads()), (Source::L2, 1));
    backend.check(&[&a, &b]).await;
}

async fn the_first_caller_may_go_away(backend: Backend) {
    dropped(backend, |at| at == 0).await;
}

async fn the_last_caller_may_go_away(backend: Backend) {
    dropped(backend, |at| at == 4).await;
}

async fn all_callers_but_one_may_go_away(backend: Backend) {
    dropped(backend, |at| at != 2).await;
}

async fn all_callers_may_go_away(backend: Backend) {
    dropped(backend, |_| true).await;
}

async fn a_panic_reaches_every_waiter_and_the_next_get_loads_again(backend: Backend) {
    let db = Db::default();
    let backoff = Duration::from_millis(1500);
    let held = backend
        .node_with(&db, |builder| builder.error_backoff(backoff))
        .await;
    let at_once = backend
        .named("at once", db.clone(), |builder| {
            builder.error_backoff(Duration::ZERO)
        })
        .await;
    for a in [&held, &at_once] {
        db.behave(Behaviour {
            panics: true,
            ..Behaviour::default()
        });
        let gate = db.gate();
        let callers = a.callers(20, 1).await;
        gate.reached().await;
        gate.open();
        for caller in callers {
            assert!(matches!(answer(caller).await, Err(Error::LoadPanicked)));
        }
        db.behave(Behaviour::default());
    }
    assert_eq!(value(at_once.get(1).await), "row 1");
    let panicked = Instant::now();
    while matches!(held.get(1).await, Err(Error::LoadPanicked)) {
        assert!(
            panicked.elapsed() < backoff + Duration::from_secs(5),
            "held off for ever"
        );
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        (value(held.get(1).await).as_str(), db.loads()),
        ("row 1", 4)
    );
    backend.check(&[&held, &at_once]).await;
}

async fn a_load_that_hangs_is_cut_off_and_its_key_is_free_again(backend: Backend) {
    let db = Db::default();
    let limit = Duration::from_millis(300);
    let settings = |builder: tidegate::CacheBuilder<Db>| {
        builder.load_timeout(limit).error_backoff(Duration::ZERO)
    };
    let (a, b) = (
        backend.node_with(&db, settings).await,
        backend.node_with(&db, settings).await,
    );
    db.behave(Behaviour {
        hangs: true,
        ..Behaviour::default()
    });
    let begun = Instant::now();
    for caller in a.callers(20, 1).await {
        assert!(matches!(answer(caller).await, Err(Error::LoadTimedOut(after)) if after == limit));
    }
    let took = begun.elapsed();
    assert!(
        took >= limit && took < limit + Duration::from_secs(3),
        "{took:?}"
    );
    db.behave(Behaviour::default());
    // No lease is left that the other process would wait for, and this process may load again.
    assert_eq!(value(b.get(1).await), "row 1");
    assert_eq!(value(a.get(1).await), "row 1");
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &b]).await;
}

type Handle = Arc<OnceLock<Node>>;

/// A cache whose loader looks up `asks(key)` in the same cache before it answers.
async fn asking(
    backend: &Backend,
    asks: impl Fn(u64) -> Option<u64> + Clone + Send + Sync + 'static,
) -> Node {
    let handle = Handle::default();
    let own = Arc::clone(&handle);
    let loader = loader_fn(move |key: u64| {
        let (own, asks) = (Arc::clone(&own), asks.clone());
        async move {
            let Some(other) = asks(key) else {
                return Ok(Loaded::found(format!("row {key}")));
            };
            let own = own.get().expect("the cache is there before its first load");
            let other = own
                .get(other)
                .await
                .map_err(|error| BoxError::new(error.to_string()))?;
            Ok::<_, BoxError>(Loaded::found(format!(
                "row {key} of {}",
                other.expect("a row")
            )))
        }
    });
    let node = backend.named("users", loader, |builder| builder).await;
    assert!(handle.set(node.clone()).is_ok());
    node
}

async fn a_loader_that_asks_for_its_own_key_gets_a_load_cycle_error(backend: Backend) {
    let a = asking(&backend, Some).await;
    match answer(a.caller(1).await).await {
        Err(Error::Load(error)) => {
            assert_eq!(error.to_string(), Error::<BoxError>::LoadCycle.to_string())
        }
        other => panic!("{other:?}"),
    }
    backend.check(&[&a]).await;
}

async fn a_loader_may_ask_for_another_key(backend: Backend) {
    let a = asking(&backend, |key| key.checked_sub(1)).await;
    assert_eq!(
        value(answer(a.caller(2).await).await),
        "row 2 of row 1 of row 0"
    );
    assert_eq!(a.stats().loads, 3);
    backend.check(&[&a]).await;
}
