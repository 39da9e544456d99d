//! Live bytes of what a cache keeps: what was allocated and not freed meanwhile.
//!
//! The allocator counts by thread, so everything runs on one: a runtime of the current thread, a cache
//! without a tier or on the embedded one. Nothing here depends on time.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::{BoxError, Cache, CacheBuilder, CacheKey, InProcess, Loaded, Loader};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;

/// Bytes of a value, none of them elsewhere.
pub(crate) const VALUE: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Value([u64; VALUE / 8]);

impl Value {
    pub(crate) fn new(id: u64) -> Self {
        Self([id; VALUE / 8])
    }
}

/// What a cache is asked for: the number says what the loader has.
pub(crate) trait Key: CacheKey + Clone + Hash + Eq + 'static {
    fn new(id: u64) -> Self;
    /// What is on the heap for it.
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
    /// Always of 24 bytes.
    fn new(id: u64) -> Self {
        let mut key = format!("user:{id:019}");
        key.shrink_to_fit();
        key
    }

    fn heap(&self) -> usize {
        self.capacity()
    }
}

/// Has values, or none, once its gate is open.
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

/// The bytes that live longer than this.
pub(crate) fn kept<T>(what: impl FnOnce() -> T) -> (i64, T) {
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

/// Bytes for each entry beside its key and its value: of bare moka, and of L1. Each has room for as many
/// as there are and no more. `found`: values, else absences.
pub(crate) fn entry<K: Key>(entries: u64, found: bool) -> Result<(f64, f64), BoxError> {
    let bare = moka::sync::Cache::<K, Option<Arc<Value>>>::new(entries);
    let (limit, ()) = kept(|| {
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
    // What it makes for its first entry and not for each.
    runtime
        .block_on(cache.get(&K::new(entries)))
        .map_err(BoxError::new)?;
    runtime
        .block_on(cache.invalidate(&K::new(entries)))
        .map_err(BoxError::new)?;
    let (ours, filled) = kept(|| {
        runtime.block_on(async {
            for id in 0..entries {
                cache.get(&K::new(id)).await.map_err(BoxError::new)?;
            }
            // Looks at all of them, so that moka has worked through its logs.
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

/// How many of these values L1 has.
pub(crate) fn answered<K: Key>(cache: &Cached<K>, entries: u64) -> u64 {
    let there = |id: &u64| cache.peek(&K::new(*id)).is_some();
    (0..entries).filter(there).count() as u64
}

/// Bytes that a flight under way and its callers hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnderWay {
    /// A task of tokio that waits for a `Notify`.
    pub(crate) task: f64,
    /// One that waits in `get` for a load of another's.
    pub(crate) waiter: f64,
    /// A load without its callers.
    pub(crate) flight: f64,
}

/// For as many loads at once, and as many callers of one load. On a tier the lease is part of the flight,
/// and with the embedded one its record, too.
pub(crate) fn under_way(many: u64, tier: bool) -> Result<UnderWay, BoxError> {
    let runtime = runtime()?;
    let waiter = callers(&runtime, many, tier, |_| 0)?;
    let both = callers(&runtime, many, tier, |at| at)?;
    Ok(UnderWay {
        task: tasks(&runtime, many),
        waiter,
        flight: both - waiter,
    })
}

fn tasks(runtime: &Runtime, many: u64) -> f64 {
    let (notify, mut waiting) = (Arc::new(Notify::new()), handles(many));
    let (bytes, ()) = kept(|| {
        runtime.block_on(async {
            for _ in 0..many {
                let notify = Arc::clone(&notify);
                waiting.push(tokio::spawn(async move { notify.notified().await }));
            }
            turns(many).await;
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
        turns(many).await;
    };
    // What the first one makes is not for each.
    runtime.block_on(async {
        waiting.push(call(u64::MAX));
        begun(1).await;
    });
    let loads = (0..many).map(&key).max().unwrap_or_default() + 1;
    let (bytes, ()) = kept(|| {
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

/// Whoever is ready has had its turn.
async fn turns(many: u64) {
    for _ in 0..many {
        yield_now().await;
    }
}

/// What a flood of absent keys does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flood {
    /// Live bytes with the values and as many absences as the budget allows.
    pub(crate) full: i64,
    /// The same after the flood.
    pub(crate) flooded: i64,
    /// Values that L1 still answers.
    pub(crate) values: u64,
    /// Absences in the embedded tier.
    pub(crate) absences: u64,
}

/// Asks for ten times as many absent keys as may be kept, beside as many values.
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
    let (full, filled) = kept(|| {
        runtime.block_on(async {
            for id in 0..budget {
                let inserted = cache.insert(id, Value::new(id)).await;
                inserted.map_err(BoxError::new)?;
            }
            ask(budget, 2 * budget).await
        })
    });
    filled?;
    let (more, flooded) = kept(|| runtime.block_on(ask(2 * budget, 11 * budget)));
    flooded?;
    let values = answered(&cache, budget);
    Ok(Flood {
        full,
        flooded: full + more,
        values,
        absences: tier.len() as u64 - budget,
    })
}

/// Live bytes after each of so many rounds in which everything is loaded, dropped key by key, loaded again
/// and dropped at once, and absences are asked for, ten times as many as are kept.
pub(crate) fn rounds(many: u64, entries: u64) -> Result<Vec<i64>, BoxError> {
    let (runtime, tier) = (runtime()?, InProcess::new());
    let values = builder::<u64>(true, &Gate::new(true)).l2(tier.clone());
    let values = values.l1_capacity(entries).build().map_err(BoxError::new)?;
    // Without a tier: the embedded one is in this process, too, and keeps what it is given.
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
        let (bytes, done) = kept(|| runtime.block_on(round(number)));
        done?;
        live += bytes;
        after.push(live);
    }
    Ok(after)
}
