//! Live bytes of a cache: allocated and not freed.
//!
//! The allocator counts per thread, so everything runs on one thread: a current-thread runtime, and
//! a cache without a tier or on the embedded one. No result depends on time.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::{BoxError, Cache, CacheBuilder, CacheKey, InProcess, Loaded, Loader};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;

/// Bytes of a value, all of them inline.
pub(crate) const VALUE: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Value([u64; VALUE / 8]);

impl Value {
    pub(crate) fn new(id: u64) -> Self {
        Self([id; VALUE / 8])
    }
}

/// A key type of the measurements, made from a number.
pub(crate) trait Key: CacheKey + Clone + Hash + Eq + 'static {
    fn new(id: u64) -> Self;
    /// Bytes of the key on the heap.
    fn heap(&self) -> usize;
}

impl Key for u64 {
    fn new(id: u64) -> Self {
        id
    }

    fn heap(&self) -> usize {
        0
    }
}

impl Key for String {
    /// A string of 24 bytes.
    fn new(id: u64) -> Self {
        let mut key = format!("user:{id:019}");
        key.shrink_to_fit();
        key
    }

    fn heap(&self) -> usize {
        self.capacity()
    }
}

/// A loader that answers, with values or with absences, once its gate is open.
#[derive(Debug)]
pub(crate) struct Gated<K> {
    found: bool,
    gate: Arc<Gate>,
    key: std::marker::PhantomData<fn(K)>,
}

#[derive(Debug)]
pub(crate) struct Gate {
    open: Semaphore,
    begun: AtomicU64,
}

impl Gate {
    pub(crate) fn new(open: bool) -> Arc<Self> {
        let permits = if open { Semaphore::MAX_PERMITS } else { 0 };
        Arc::new(Self {
            open: Semaphore::new(permits),
            begun: AtomicU64::new(0),
        })
    }
}

impl<K: Key> Loader for Gated<K> {
    type Key = K;
    type Value = Value;
    type Error = BoxError;

    async fn load(&self, _: &K) -> Result<Loaded<Value>, BoxError> {
        self.gate.begun.fetch_add(1, Ordering::SeqCst);
        let permit = self.gate.open.acquire().await.map_err(BoxError::new)?;
        permit.forget();
        Ok(if self.found {
            Loaded::found(Value::new(7))
        } else {
            Loaded::missing()
        })
    }
}

pub(crate) type Cached<K> = Cache<K, Value, BoxError>;

pub(crate) fn builder<K: Key>(found: bool, gate: &Arc<Gate>) -> CacheBuilder<Gated<K>> {
    let loader = Gated {
        found,
        gate: Arc::clone(gate),
        key: std::marker::PhantomData,
    };
    Cache::builder("users", loader)
        .ttl(Duration::from_secs(36_000))
        .negative_ttl(Duration::from_secs(36_000))
        .load_timeout(Duration::from_secs(36_000))
        .lease_wait(Duration::from_secs(36_000))
}

pub(crate) fn runtime() -> Result<Runtime, BoxError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BoxError::new)
}

/// The bytes that outlast the call.
pub(crate) fn live_bytes<T>(what: impl FnOnce() -> T) -> (i64, T) {
    let mut made = None;
    let counted = allocation_counter::measure(|| made = Some(what()));
    match made {
        Some(made) => (counted.bytes_current, made),
        None => unreachable!("it was run"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "far from 2^52 bytes")]
pub(crate) fn each(bytes: i64, of: u64) -> f64 {
    bytes as f64 / of as f64
}

/// Bytes per entry beyond its key and value, of bare moka and of L1. Each has capacity for exactly
/// these entries. `found`: values, else absences.
pub(crate) fn entry<K: Key>(entries: u64, found: bool) -> Result<(f64, f64), BoxError> {
    let bare = moka::sync::Cache::<K, Option<Arc<Value>>>::new(entries);
    let (limit, ()) = live_bytes(|| {
        for id in 0..entries {
            bare.insert(K::new(id), found.then(|| Arc::new(Value::new(id))));
        }
        bare.run_pending_tasks();
    });
    let runtime = runtime()?;
    let cache = builder::<K>(found, &Gate::new(true));
    let cache = match found {
        true => cache.l1_capacity(entries),
        false => cache.negative_capacity(entries),
    };
    let cache = cache.build().map_err(BoxError::new)?;
    // Allocations for the first entry do not count for each entry.
    runtime
        .block_on(cache.get(&K::new(entries)))
        .map_err(BoxError::new)?;
    runtime
        .block_on(cache.invalidate(&K::new(entries)))
        .map_err(BoxError::new)?;
    let (ours, filled) = live_bytes(|| {
        runtime.block_on(async {
            for id in 0..entries {
                cache.get(&K::new(id)).await.map_err(BoxError::new)?;
            }
            // A read of all entries makes moka work through its logs.
            Ok::<_, BoxError>(answered(&cache, entries))
        })
    });
    let there = if found { filled? } else { (filled?, entries).1 };
    let loads = cache.stats().loads;
    if there != entries || loads != entries + 1 {
        return Err(format!("{there} of {entries} are there after {loads} loads").into());
    }
    let size = size_of::<K>() + K::new(0).heap() + if found { VALUE } else { 0 };
    let beside = |bytes| each(bytes, entries) - each(i64::try_from(size).unwrap_or(0), 1);
    Ok((beside(limit), beside(ours)))
}

/// How many of these values L1 holds.
pub(crate) fn answered<K: Key>(cache: &Cached<K>, entries: u64) -> u64 {
    let there = |id: &u64| cache.peek(&K::new(*id)).is_some();
    (0..entries).filter(there).count() as u64
}

/// Bytes of a running flight and of its callers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    /// A bare task of tokio that waits for a `Notify`.
    pub(crate) task: f64,
    /// A task that waits in `get` for the load of another caller.
    pub(crate) waiter: f64,
    /// A load without its callers.
    pub(crate) flight: f64,
}

/// Measures `many` loads at once, and `many` callers of one load. With a tier, a flight includes
/// its lease, and with the embedded tier the record of the lease as well.
pub(crate) fn in_flight(many: u64, tier: bool) -> Result<InFlight, BoxError> {
    let runtime = runtime()?;
    let waiter = callers(&runtime, many, tier, |_| 0)?;
    let both = callers(&runtime, many, tier, |at| at)?;
    Ok(InFlight {
        task: tasks(&runtime, many),
        waiter,
        flight: both - waiter,
    })
}

fn tasks(runtime: &Runtime, many: u64) -> f64 {
    let (notify, mut waiting) = (Arc::new(Notify::new()), handles(many));
    let (bytes, ()) = live_bytes(|| {
        runtime.block_on(async {
            for _ in 0..many {
                let notify = Arc::clone(&notify);
                waiting.push(tokio::spawn(async move { notify.notified().await }));
            }
            yield_to_tasks(many).await;
        });
    });
    notify.notify_waiters();
    for one in waiting {
        let _ = runtime.block_on(one);
    }
    each(bytes, many)
}

fn callers(
    runtime: &Runtime,
    many: u64,
    tier: bool,
    key: impl Fn(u64) -> u64,
) -> Result<f64, BoxError> {
    let (gate, mut waiting) = (Gate::new(false), handles(many + 1));
    let cache = builder::<u64>(true, &gate);
    let cache = if tier {
        cache.l2(InProcess::new())
    } else {
        cache
    };
    let cache = cache.build().map_err(BoxError::new)?;
    let call = |id| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get(&id).await.map(drop) })
    };
    let begun = async |loads| {
        while gate.begun.load(Ordering::SeqCst) < loads {
            yield_now().await;
        }
        yield_to_tasks(many).await;
    };
    // Allocations for the first load do not count for each load.
    runtime.block_on(async {
        waiting.push(call(u64::MAX));
        begun(1).await;
    });
    let loads = (0..many).map(&key).max().unwrap_or_default() + 1;
    let (bytes, ()) = live_bytes(|| {
        runtime.block_on(async {
            waiting.extend((0..many).map(|at| call(key(at))));
            begun(loads + 1).await;
        });
    });
    gate.open.add_permits(Semaphore::MAX_PERMITS);
    for one in waiting {
        let answer = runtime.block_on(one).map_err(BoxError::new)?;
        answer.map_err(BoxError::new)?;
    }
    let stats = cache.stats();
    if stats.loads != loads + 1 || stats.coalesced != many - loads {
        return Err(format!("{many} callers of {loads} keys, but {stats:?}").into());
    }
    Ok(each(bytes, many))
}

fn handles<T>(many: u64) -> Vec<T> {
    Vec::with_capacity(usize::try_from(many).unwrap_or(0))
}

/// Yields until every ready task has run.
async fn yield_to_tasks(many: u64) {
    for _ in 0..many {
        yield_now().await;
    }
}

/// The effect of a flood of absent keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flood {
    /// Live bytes with all values and as many absences as the budget allows.
    pub(crate) full: i64,
    /// Live bytes after the flood.
    pub(crate) flooded: i64,
    /// Values that L1 still answers.
    pub(crate) values: u64,
    /// Absences in the embedded tier.
    pub(crate) absences: u64,
}

/// Looks up ten times as many absent keys as the budget allows, beside as many values.
pub(crate) fn flood(budget: u64) -> Result<Flood, BoxError> {
    let (runtime, tier) = (runtime()?, InProcess::new());
    let cache = builder::<u64>(false, &Gate::new(true)).l2(tier.clone());
    let cache = cache.l1_capacity(budget).negative_capacity(budget);
    let cache = cache.build().map_err(BoxError::new)?;
    let ask = async |from: u64, to: u64| {
        for id in from..to {
            cache.get(&id).await.map_err(BoxError::new)?;
        }
        Ok::<_, BoxError>(())
    };
    let (full, filled) = live_bytes(|| {
        runtime.block_on(async {
            for id in 0..budget {
                let inserted = cache.insert(id, Value::new(id)).await;
                inserted.map_err(BoxError::new)?;
            }
            ask(budget, 2 * budget).await
        })
    });
    filled?;
    let (more, flooded) = live_bytes(|| runtime.block_on(ask(2 * budget, 11 * budget)));
    flooded?;
    let values = answered(&cache, budget);
    Ok(Flood {
        full,
        flooded: full + more,
        values,
        absences: tier.len() as u64 - budget,
    })
}

/// Live bytes after each round. A round loads all keys, drops them one by one, loads them again,
/// drops them all at once, and looks up ten times as many absent keys as are kept.
pub(crate) fn rounds(many: u64, entries: u64) -> Result<Vec<i64>, BoxError> {
    let (runtime, tier) = (runtime()?, InProcess::new());
    let values = builder::<u64>(true, &Gate::new(true)).l2(tier.clone());
    let values = values.l1_capacity(entries).build().map_err(BoxError::new)?;
    // Without a tier, because the embedded one would keep its records in this process.
    let none = builder::<u64>(false, &Gate::new(true)).l1_capacity(entries);
    let none = none.negative_capacity(entries);
    let none = none.build().map_err(BoxError::new)?;
    let round = async |number: u64| {
        for _ in 0..2 {
            for id in 0..entries {
                values.get(&id).await.map_err(BoxError::new)?;
            }
            values.invalidate_all().await.map_err(BoxError::new)?;
        }
        for id in 0..entries {
            values.invalidate(&id).await.map_err(BoxError::new)?;
        }
        for id in number * 10 * entries..(number + 1) * 10 * entries {
            none.get(&id).await.map_err(BoxError::new)?;
        }
        none.invalidate_all().await.map_err(BoxError::new)
    };
    let (mut live, mut after) = (0, Vec::new());
    for number in 0..many {
        let (bytes, done) = live_bytes(|| runtime.block_on(round(number)));
        done?;
        live += bytes;
        after.push(live);
    }
    Ok(after)
}
