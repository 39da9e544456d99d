//! The builder of a cache, with every setting.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Cache;
use crate::batch::Batching;
use crate::codec::{AnyCodec, Codec, CodecFor};
use crate::config::Config;
use crate::engine::{Batches, Engine, EngineParts};
use crate::error::BuildError;
use crate::health::OnEvent;
use crate::l1::{TypedL1, Weigher};
use crate::l2::{Backend, SharedTier};
use crate::loader::{BatchLoader, CacheFor, ErasedBatchLoader, Loader};
use crate::shell::Shell;

/// The settings of a cache: see [`Cache::builder`].
///
/// Every setting has a default that suits most services. [`build`](Self::build) refuses settings
/// that make no sense; its error names the setter.
///
/// | setting | default | |
/// |---|---|---|
/// | [`ttl`](Self::ttl) | 5 min | fresh for this long |
/// | [`ttl_jitter`](Self::ttl_jitter) | 0.1 | shortens each TTL by up to this share |
/// | [`cold_start_spread`](Self::cold_start_spread) | off | first lives are drawn from (ttl/20, ttl] |
/// | [`stale_while_revalidate`](Self::stale_while_revalidate) | zero | past the TTL, answer and load in the background |
/// | [`stale_if_error`](Self::stale_if_error) | zero | past the TTL, answer if the load fails |
/// | [`refresh_ahead`](Self::refresh_ahead) | 1.0 | how eagerly hot entries are loaded before the TTL ends |
/// | [`negative_ttl`](Self::negative_ttl) | 30 s | how long "not found" is kept |
/// | [`negative_capacity`](Self::negative_capacity) | 10,000 | absences kept, in a budget of their own |
/// | [`l1_capacity`](Self::l1_capacity) | 10,000 | entries in this process; zero turns L1 off |
/// | [`l1_weigher`](Self::l1_weigher) | none | makes the capacity a budget, in bytes for instance |
/// | [`l1_ttl`](Self::l1_ttl) | = TTL | upper bound for L1 alone |
/// | [`degraded_l1_ttl`](Self::degraded_l1_ttl) | 5 s | how long L1 answers while L2 cannot be reached |
/// | [`channel_lease`](Self::channel_lease) | 2 s | no L1 answer misses an older invalidation |
/// | [`hold_off`](Self::hold_off) | zero | after an invalidation, store nothing for this long |
/// | [`on_event`](Self::on_event) | none | a function that receives events for operators |
/// | [`load_timeout`](Self::load_timeout) | 30 s | a longer load is cut off |
/// | [`load_soft_timeout`](Self::load_soft_timeout) | none | where a stale value exists, wait no longer |
/// | [`max_concurrent_loads`](Self::max_concurrent_loads) | unlimited | bulkhead of this cache in this process |
/// | [`error_backoff`](Self::error_backoff) | 200 ms | a failed load is not repeated for this long |
/// | [`batched`](Self::batched) | off | loads many keys with one call of a [`BatchLoader`] |
/// | [`l2`](Self::l2) | none | the shared tier |
/// | [`codec`](Self::codec) | `Bincode` | how values become bytes for the shared tier |
/// | [`schema_version`](Self::schema_version) | 0 | the version of the value's type |
/// | [`max_record_bytes`](Self::max_record_bytes) | 8 MiB | larger values are not stored in the shared tier |
/// | [`lease_ttl`](Self::lease_ttl) | 2 s | how long a dead process holds a key |
/// | [`lease_wait`](Self::lease_wait) | 10 s | how long to wait for another process's load |
///
/// ```
/// use std::time::Duration;
/// use tidegate::{Cache, CacheBuilder, InProcess, Loader};
///
/// /// What all caches of a service have in common.
/// fn usual<L: Loader>(cache: CacheBuilder<L>) -> CacheBuilder<L> {
///     cache
///         .load_timeout(Duration::from_secs(2)) // as long as a client waits
///         .max_concurrent_loads(16) // this process's share of the connections
/// }
///
/// # let load = tidegate::loader_fn(|id: u64| async move { Ok::<_, std::io::Error>(Some(id)) });
/// let users: Cache<u64, u64, std::io::Error> = usual(Cache::builder("users", load))
///     .ttl(Duration::from_secs(600))
///     .l2(InProcess::new())
///     .build()?;
/// # Ok::<_, tidegate::BuildError>(())
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct CacheBuilder<L: Loader> {
    name: String,
    loader: L,
    config: Config,
    weigher: Option<Weigher<L::Key, L::Value>>,
    codec: Option<Arc<dyn AnyCodec>>,
    default_codec: Option<Arc<dyn AnyCodec>>,
    tier: Option<Backend>,
    batched: Option<(Batching, Erase<L>)>,
}

/// Erases the type of a batch loader.
type Erase<L> = fn(Arc<L>) -> Arc<dyn ErasedBatchLoader>;

impl<L: Loader> CacheBuilder<L> {
    pub(crate) fn new(name: &str, loader: L) -> Self {
        Self {
            name: name.to_owned(),
            loader,
            config: Config::default(),
            weigher: None,
            codec: None,
            default_codec: None,
            tier: None,
            batched: None,
        }
    }

    /// How long an entry is fresh. A loader can set another time per value
    /// ([`Loaded::ttl`](crate::Loaded::ttl)).
    ///
    /// Default: 5 minutes. More than a hundred years counts as a hundred years, here and in every
    /// other duration.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.config.ttl = ttl;
        self
    }

    /// Shortens each TTL by a random share of up to this much, from 0 (off) to below 1, so that
    /// entries made together do not expire together. The share is drawn once, when a value is
    /// loaded or inserted, and kept in its record, so that all processes agree. Jitter never
    /// lengthens a TTL. Absences have none. Where `l1_ttl` is set, each process draws for it too.
    ///
    /// Default: 0.1. To keep the reloads of `n` entries that were filled together under `r` a
    /// second, set at least `n / (r · ttl)`.
    pub fn ttl_jitter(mut self, share: f64) -> Self {
        self.config.ttl_jitter = share;
        self
    }

    /// Entries that are filled within one TTL after this cache was built draw their first life from
    /// (ttl/20, ttl]. The reload rate is then steady at once, instead of in waves that take many
    /// TTLs to fade.
    ///
    /// Default: off, because a first life much shorter than the setting surprises.
    pub fn cold_start_spread(mut self, on: bool) -> Self {
        self.config.cold_start_spread = on;
        self
    }

    /// For this long after its TTL an entry is still answered, at once, while one process of the
    /// fleet loads a new one in the background. The other processes take that one.
    ///
    /// Default: zero, which makes the callers after the TTL wait for the load. The window does not
    /// apply to absences, nor after [`expire`](crate::Cache::expire). A call that must not see a
    /// stale value uses [`Read::fresh`](crate::Read::fresh). RFC 5861.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.config.windows.while_revalidate = window;
        self
    }

    /// For this long after its TTL (not after `stale_while_revalidate`) an entry is answered when
    /// the load fails or is cut off, or when it takes longer than
    /// [`load_soft_timeout`](Self::load_soft_timeout). The entry stays in L2 for that time, so
    /// every process has it. [`Freshness`](crate::Freshness) reports such an answer.
    ///
    /// Default: zero. The window does not apply to absences, and never after an invalidation. L1
    /// answers within it too. While L2 cannot be reached, L1 does so no longer than
    /// `degraded_l1_ttl`, because the process could miss an invalidation. RFC 5861.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.config.windows.if_error = window;
        self
    }

    /// The β of probabilistic early expiration (XFetch). A hit late in the TTL may begin a load in
    /// the background, so that a hot key is replaced before any caller waits for it. A later hit
    /// and a more expensive load make this more likely. The cost of a load is measured and kept in
    /// the record.
    ///
    /// Default: 1.0. With `r` hits a second in the fleet and a load of `δ` seconds, the value is
    /// replaced about `βδ·(ln(rβδ) + 0.58)` seconds before its TTL ends. A caller arrives too late
    /// with a probability of about `exp(−rβδ·e^(−1/β))`: at `rδ = 10` 2.5 per cent with 1.0, and 5
    /// in a million with 2.0. Keys that are asked for less than once per `δ` are rarely replaced
    /// early; `stale_while_revalidate` is for those. Zero turns early loads off. At most 1,000. No
    /// load begins in the first half of the TTL. One process of the fleet loads.
    ///
    /// Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", PVLDB
    /// 8(8), 2015.
    pub fn refresh_ahead(mut self, beta: f64) -> Self {
        self.config.windows.ahead = beta;
        self
    }

    /// How long an absence is kept. Zero keeps no absences.
    ///
    /// Default: 30 seconds.
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.config.negative_ttl = ttl;
        self
    }

    /// How many absences are kept. They have a budget of their own, so that a flood of keys that do
    /// not exist evicts no value. L1 keeps this many. To L2 each process writes this many at once
    /// and again this many per `negative_ttl`, so that `p` processes never leave more than
    /// `2 · p · negative_capacity` there. An absence beyond that is answered and not kept. Zero
    /// keeps none.
    ///
    /// Default: 10,000.
    pub fn negative_capacity(mut self, entries: u64) -> Self {
        self.config.negative_capacity = entries;
        self
    }

    /// How many values L1 keeps, or, with a [weigher](Self::l1_weigher), how much they may weigh
    /// together. Zero turns L1 off.
    ///
    /// Default: 10,000. Eviction is moka's TinyLFU.
    pub fn l1_capacity(mut self, capacity: u64) -> Self {
        self.config.l1_capacity = capacity;
        self
    }

    /// Makes [`l1_capacity`](Self::l1_capacity) a budget in the unit of this function, for instance
    /// bytes. The function is called when a value is stored. It should be quick, and always return
    /// the same for the same value.
    ///
    /// Default: every value weighs 1.
    ///
    /// ```
    /// # let load = tidegate::loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(Some(vec![0_u8; 100]))
    /// # });
    /// # use tidegate::Cache;
    /// let images: Cache<u64, Vec<u8>, std::io::Error> = Cache::builder("images", load)
    ///     .l1_capacity(256 << 20) // 256 MiB
    ///     .l1_weigher(|_, image: &Vec<u8>| u32::try_from(image.len() + 64).unwrap_or(u32::MAX))
    ///     .build()?;
    /// # Ok::<_, tidegate::BuildError>(())
    /// ```
    pub fn l1_weigher(
        mut self,
        weigher: impl Fn(&L::Key, &L::Value) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.weigher = Some(Arc::new(weigher));
        self
    }

    /// An upper bound for the time in L1 alone, and so for the cost of a lost invalidation. L1
    /// never outlives the entry's TTL and its stale windows in any case. This setting bounds the
    /// windows too: without a shared tier it ends every stale answer.
    ///
    /// Default: no bound but the entry's own TTL.
    pub fn l1_ttl(mut self, ttl: Duration) -> Self {
        self.config.l1_ttl = Some(ttl);
        self
    }

    /// How long L1 may answer while L2 cannot be reached and no invalidation can arrive. For
    /// entries from before the contact was lost, the time counts from that moment; for entries
    /// loaded meanwhile, from their load. Zero asks the loader every time (still one load per key
    /// at a time).
    ///
    /// Default: 5 seconds. With `p` processes and `k` keys in use, the source sees at most about
    /// `p · k / degraded_l1_ttl` loads a second during an outage.
    pub fn degraded_l1_ttl(mut self, ttl: Duration) -> Self {
        self.config.degraded_l1_ttl = ttl;
        self
    }

    /// The channel lease: how long one proof of the connection to the invalidation bus lasts. No
    /// answer from L1 misses an invalidation that is older than this, whatever happens to messages,
    /// connections or this process. [`invalidate_everywhere`](crate::Cache::invalidate_everywhere)
    /// therefore waits for it. The process proves the connection every third of it, with one script
    /// on the server. At least 100 milliseconds; the same in every process of the fleet.
    ///
    /// Default: 2 seconds.
    pub fn channel_lease(mut self, lease: Duration) -> Self {
        self.config.channel_lease = lease;
        self
    }

    /// For this long after an invalidation of a key, loaded values are answered and stored nowhere.
    /// It is for loaders that read a replica: a value that was loaded within the replica's lag may
    /// be older than the write, so set it to the longest lag. `insert` is not held off.
    ///
    /// An invalidation of everything holds off L1 in the processes that hear of it, not L2. An
    /// invalidation of a tag holds off nothing. Default: zero.
    pub fn hold_off(mut self, time: Duration) -> Self {
        self.config.hold_off = time;
        self
    }

    /// A function that receives events for operators: see [`Event`](crate::Event). It is called in
    /// place, so it must be quick and must not block. Its panics are dropped.
    ///
    /// Default: none.
    ///
    /// ```
    /// # let load = tidegate::loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(Some(id))
    /// # });
    /// use tidegate::{Cache, Event};
    ///
    /// let users: Cache<u64, u64, std::io::Error> = Cache::builder("users", load)
    ///     .on_event(|event| match event {
    ///         Event::Denied | Event::RepairsOverflowed => eprintln!("users: {event:?}!"),
    ///         event => println!("users: {event:?}"),
    ///     })
    ///     .build()?;
    /// # Ok::<_, tidegate::BuildError>(())
    /// ```
    pub fn on_event(mut self, tell: impl Fn(&crate::Event) + Send + Sync + 'static) -> Self {
        self.config.on_event = Some(OnEvent(Arc::new(tell)));
        self
    }

    /// The longest a load may take, including the wait for a permit of `max_concurrent_loads`. A
    /// longer load is cut off at its next await point and its callers get
    /// [`Error::LoadTimedOut`](crate::Error::LoadTimedOut).
    ///
    /// Default: 30 seconds.
    pub fn load_timeout(mut self, timeout: Duration) -> Self {
        self.config.load_timeout = timeout;
        self
    }

    /// Where a stale value exists (within [`stale_if_error`](Self::stale_if_error)) callers wait no
    /// longer than this for a load, and get that value. The load goes on and is stored. Without a
    /// stale value they wait, so the setting has no effect where `stale_if_error` is zero. Shorter
    /// than `load_timeout`.
    ///
    /// Default: none.
    pub fn load_soft_timeout(mut self, timeout: Duration) -> Self {
        self.config.load_soft_timeout = Some(timeout);
        self
    }

    /// How many loads may run at once in this process, for this cache. Further loads wait for a
    /// permit. Refreshes and loads of keys that had an entry go first, then unknown keys, each in
    /// the order of arrival. The cache knows how long loads usually take. A load
    /// that could not get a permit and end within `load_timeout` does not begin: its callers get
    /// [`Error::Overloaded`](crate::Error::Overloaded), or a stale value, at once. Set
    /// `load_timeout` to the time that callers wait, and an overloaded source does no work whose
    /// result comes too late.
    ///
    /// Default: unlimited. This setting protects a database when many different keys are cold at
    /// once, or when Redis is gone. Every process then loads for itself, and `p` processes with `k`
    /// keys in use could run `p · k` loads at once. With this setting `p` times its value is the
    /// most. Set it to the process's share of the database's connections.
    pub fn max_concurrent_loads(mut self, loads: usize) -> Self {
        self.config.max_concurrent_loads = Some(loads);
        self
    }

    /// For this long after a failed load (an error, a panic or a timeout) there is no other
    /// attempt, in the whole fleet: a record in L2 says so, and a dead database sees one attempt
    /// per key and window. Meanwhile this process answers the same error, or a stale value where
    /// that is allowed. The other processes answer a stale value or
    /// [`Error::LoadFailedElsewhere`](crate::Error::LoadFailedElsewhere).
    ///
    /// Each of the first three failures in a row is followed by this time, each further one by
    /// twice the time before, up to 16 times this. `invalidate` and `insert` end it early. Zero
    /// tries again at once. A record that claims more than 16 times this and more than a minute is
    /// not valid, and is replaced.
    ///
    /// Default: 200 milliseconds, and so 3.2 seconds at most.
    pub fn error_backoff(mut self, backoff: Duration) -> Self {
        self.config.error_backoff = backoff;
        self
    }

    /// The version of the value's type. Increase it with every change of the encoding. Records of
    /// an older version are misses and are replaced. Records of a newer one are left alone (this
    /// process loads for itself), so that both sides of a rolling deploy work and one `invalidate`
    /// reaches both.
    ///
    /// Default: 0.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tidegate::{Cache, InProcess};
    /// #[derive(Serialize, Deserialize)]
    /// struct User { name: String, language: String } // version 0 had no language
    ///
    /// # let load = tidegate::loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(None::<User>)
    /// # });
    /// let users: Cache<u64, User, std::io::Error> =
    ///     Cache::builder("users", load).schema_version(1).l2(InProcess::new()).build()?;
    /// # Ok::<_, tidegate::BuildError>(())
    /// ```
    pub fn schema_version(mut self, version: u16) -> Self {
        self.config.schema_version = version;
        self
    }

    /// The largest record, header and tags included, in both directions. A value whose record would
    /// be larger is answered, not stored, and counts in
    /// [`encode_failures`](crate::Stats::encode_failures). An `insert` of it is an error. A stored
    /// record that is larger is a miss, is not decoded, counts in
    /// [`decode_failures`](crate::Stats::decode_failures), and is replaced. From 1 KiB to 256 MiB.
    ///
    /// Default: 8 MiB. Redis takes up to 512 MB, but replies come one after the other. A large
    /// reply delays the replies behind it on the connection, and one that takes longer than the
    /// `timeout` is a failed command.
    pub fn max_record_bytes(mut self, bytes: usize) -> Self {
        self.config.max_record_bytes = bytes;
        self
    }

    /// How long a lease lives without being renewed, and so how long a key waits for a process that
    /// died while loading it. A load may take much longer; its lease is renewed every third of
    /// this. At least 50 milliseconds.
    ///
    /// Default: 2 seconds.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.config.lease_ttl = ttl;
        self
    }

    /// How long to wait for the load of another process before loading without a lease (and so
    /// without storing the value in L2). Zero never waits.
    ///
    /// Default: 10 seconds.
    pub fn lease_wait(mut self, wait: Duration) -> Self {
        self.config.lease_wait = wait;
        self
    }

    /// Checks the settings and makes the cache. It does no I/O and needs no runtime; both begin
    /// with the first look-up.
    ///
    /// ```
    /// # let load = tidegate::loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(Some(id))
    /// # });
    /// # use tidegate::Cache;
    /// let refused: Result<Cache<u64, u64, std::io::Error>, _> =
    ///     Cache::builder("users", load).ttl_jitter(1.5).build();
    /// let why = refused.err().map(|error| error.to_string());
    /// let expected = "ttl_jitter(1.5) is not possible: a share from 0 to below 1";
    /// assert_eq!(why.as_deref(), Some(expected));
    /// ```
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the setting that is out of range, or the two that contradict each
    /// other.
    pub fn build(self) -> Result<CacheFor<L>, BuildError> {
        self.check()?;
        let codec = match (&self.tier, self.codec.or(self.default_codec)) {
            (Some(_), None) => return Err(BuildError::NoCodec),
            (None, _) => None,
            (Some(_), codec) => codec,
        };
        let shared = self.tier.zip(codec);
        let loader = Arc::new(self.loader);
        let batches = self
            .batched
            .map(|(settings, erase)| Batches::new(erase(Arc::clone(&loader)), settings));
        let config = self.config.bounded();
        let weighs = self.weigher.is_some();
        let typed = Arc::new(TypedL1::new(config.l1_capacity, self.weigher));
        let engine = Engine::new(EngineParts {
            name: self.name,
            config,
            loader,
            batches,
            typed: Arc::clone(&typed) as _,
            weighs,
            remote: shared,
        });
        Ok(Cache::new(Shell::new(engine, typed)))
    }

    fn check(&self) -> Result<(), BuildError> {
        let config = &self.config;
        if self.name.is_empty() || self.name.len() > 100 {
            return Err(BuildError::OutOfRange {
                setter: "builder",
                value: format!("{:?}", self.name),
                allowed: "the name of a cache is 1 to 100 bytes long",
            });
        }
        if let Some((batching, _)) = &self.batched {
            batching.check()?;
        }
        for (setter, value) in [
            ("ttl", Some(config.ttl)),
            ("l1_ttl", config.l1_ttl),
            ("load_timeout", Some(config.load_timeout)),
        ] {
            if value.is_some_and(|value| value.is_zero()) {
                return Err(out_of_range(
                    setter,
                    Duration::ZERO,
                    "it must be longer than zero",
                ));
            }
        }
        if !(0.0..1.0).contains(&config.ttl_jitter) {
            let allowed = "a share from 0 to below 1";
            return Err(out_of_range("ttl_jitter", config.ttl_jitter, allowed));
        }
        if !(0.0..=1000.0).contains(&config.windows.ahead) {
            let allowed = "0 (off) to 1000; 1 to 2 suit most";
            return Err(out_of_range("refresh_ahead", config.windows.ahead, allowed));
        }
        if let Some(soft) = config.load_soft_timeout {
            let value = format!("{soft:?}");
            if soft >= config.load_timeout {
                let why = "a load is cut off before callers stop waiting for it";
                let other = format!("{:?}", config.load_timeout);
                return Err(clash(
                    "load_soft_timeout",
                    value,
                    "load_timeout",
                    other,
                    why,
                ));
            }
        }
        self.check_limits()?;
        self.check_l1()
    }

    /// Checks that leases and limits are within their ranges.
    fn check_limits(&self) -> Result<(), BuildError> {
        let config = &self.config;
        if config.channel_lease < Duration::from_millis(100) {
            let allowed = "at least 100 ms: the channel proves itself every third of it";
            return Err(out_of_range("channel_lease", config.channel_lease, allowed));
        }
        if config.lease_ttl < Duration::from_millis(50) {
            let allowed = "at least 50 ms: it is renewed every third of it";
            return Err(out_of_range("lease_ttl", config.lease_ttl, allowed));
        }
        if config
            .max_concurrent_loads
            .is_some_and(|loads| loads == 0 || loads > MOST_LOADS)
        {
            let loads = config.max_concurrent_loads.unwrap_or_default();
            let allowed = "1 to 2^29: with none, nothing could ever be loaded";
            return Err(out_of_range("max_concurrent_loads", loads, allowed));
        }
        if !(1 << 10..=1 << 28).contains(&config.max_record_bytes) {
            let allowed = "1 KiB to 256 MiB";
            return Err(out_of_range(
                "max_record_bytes",
                config.max_record_bytes,
                allowed,
            ));
        }
        Ok(())
    }

    /// Checks that the settings of L1 do not contradict each other.
    fn check_l1(&self) -> Result<(), BuildError> {
        let config = &self.config;
        if config.l1_capacity == 0 {
            let other = if self.weigher.is_some() {
                Some(("l1_weigher", "..".to_owned(), "there is nothing to weigh"))
            } else {
                config
                    .l1_ttl
                    .map(|ttl| ("l1_ttl", format!("{ttl:?}"), "there is nothing to keep"))
            };
            if let Some((other, other_value, why)) = other {
                return Err(clash("l1_capacity", 0, other, other_value, why));
            }
            if self.tier.is_none() {
                let why = "no tier is left that could keep anything";
                return Err(clash("l1_capacity", 0, "l2", "none".to_owned(), why));
            }
        }
        if config.cold_start_spread && config.ttl < Duration::from_millis(20) {
            let why = "a twentieth of the ttl is less than a millisecond";
            let ttl = format!("{:?}", config.ttl);
            return Err(clash("cold_start_spread", true, "ttl", ttl, why));
        }
        Ok(())
    }
}

impl<L: BatchLoader> CacheBuilder<L> {
    /// Loads several keys with one call of [`load_many`](BatchLoader::load_many): the keys of a
    /// [`get_many`](crate::Cache::get_many), and single look-ups and refreshes that arrive together
    /// (see [`Batching`]).
    ///
    /// Default: off, also for a `BatchLoader`; every key is then loaded by itself.
    pub fn batched(mut self, batching: Batching) -> Self {
        self.batched = Some((batching, |loader| loader));
        self
    }
}

/// The largest `max_concurrent_loads`: below the largest count of a semaphore of tokio.
const MOST_LOADS: usize = 1 << 29;

impl<L: Loader> CacheBuilder<L>
where
    L::Value: Serialize + DeserializeOwned,
{
    /// The shared tier: a [`Redis`](crate::Redis) handle, or [`InProcess`](crate::InProcess).
    ///
    /// Default: none; the cache then works within this process.
    pub fn l2(mut self, tier: impl SharedTier) -> Self {
        self.tier = Some(tier.into_tier().0);
        #[cfg(feature = "bincode")]
        {
            self.default_codec = Some(Arc::new(CodecFor::<L::Value, _>::new(
                crate::codec::Bincode,
            )));
        }
        self
    }

    /// How values become bytes for the shared tier.
    ///
    /// Default: [`Bincode`](crate::Bincode). Records of another codec are misses and are replaced.
    pub fn codec(mut self, codec: impl Codec) -> Self {
        self.codec = Some(Arc::new(CodecFor::<L::Value, _>::new(codec)));
        self
    }
}

fn out_of_range(setter: &'static str, value: impl fmt::Debug, allowed: &'static str) -> BuildError {
    BuildError::OutOfRange {
        setter,
        value: format!("{value:?}"),
        allowed,
    }
}

fn clash(
    setter: &'static str,
    value: impl fmt::Display,
    other: &'static str,
    other_value: String,
    why: &'static str,
) -> BuildError {
    BuildError::Clash {
        setter,
        value: value.to_string(),
        other,
        other_value,
        why,
    }
}

impl<L: Loader> fmt::Debug for CacheBuilder<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("name", &self.name)
            .field("config", &self.config)
            .field("l2", &self.tier)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(feature = "bincode")))]
mod tests_without_codec {
    use super::*;
    use crate::{BoxError, InProcess, Loaded, loader_fn};

    #[test]
    fn a_shared_tier_without_a_codec_is_refused() {
        let load = loader_fn(|_: u64| async { Ok::<_, BoxError>(Loaded::found(String::new())) });
        let refusal: Result<Cache<u64, String, BoxError>, BuildError> =
            Cache::builder("n", load).l2(InProcess::new()).build();
        assert_eq!(refusal.expect_err("refused"), BuildError::NoCodec);
    }
}

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests {
    use super::*;
    use crate::{BoxError, InProcess, Loaded, loader_fn};

    type Refusal = Result<Cache<u64, String, BoxError>, BuildError>;

    fn loader() -> impl Loader<Key = u64, Value = String, Error = BoxError> {
        loader_fn(|_: u64| async { Ok::<_, BoxError>(Loaded::found(String::new())) })
    }

    macro_rules! refused {
        ($($setting:ident($($value:expr),*)).+ => $says:expr) => {
            let refusal: Refusal = Cache::builder("n", loader())$(.$setting($($value),*))+.build();
            let says: &str = &$says;
            let text = refusal.expect_err(says).to_string();
            for part in says.split('|') {
                assert!(text.contains(part), "{text:?} does not say {part:?}");
            }
        };
    }

    #[test]
    fn every_incoherent_setting_is_refused_by_name_and_value() {
        refused!(ttl(Duration::ZERO) => "ttl(0ns)|longer than zero");
        refused!(l1_ttl(Duration::ZERO) => "l1_ttl(0ns)|longer than zero");
        refused!(load_timeout(Duration::ZERO) => "load_timeout(0ns)|longer than zero");
        for (share, text) in [
            (-0.1, "-0.1"),
            (1.0, "1.0"),
            (7.5, "7.5"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ] {
            refused!(ttl_jitter(share) => format!("ttl_jitter({text})|from 0 to below 1"));
        }
        for (beta, text) in [(-0.1, "-0.1"), (1000.5, "1000.5"), (f64::NAN, "NaN")] {
            refused!(refresh_ahead(beta) => format!("refresh_ahead({text})|0 (off) to 1000"));
        }
        let soft = Duration::from_secs(30);
        refused!(load_soft_timeout(soft) => "load_soft_timeout(30s)|load_timeout(30s)");
        refused!(lease_ttl(Duration::ZERO) => "lease_ttl(0ns)|50 ms");
        refused!(lease_ttl(Duration::from_millis(49)) => "lease_ttl(49ms)|50 ms");
        refused!(max_concurrent_loads(0) => "max_concurrent_loads(0)");
        refused!(max_concurrent_loads(usize::MAX) => "max_concurrent_loads(");
        refused!(max_record_bytes(1023) => "max_record_bytes(1023)|1 KiB");
        refused!(max_record_bytes(usize::MAX) => "max_record_bytes(|256 MiB");
        refused!(l1_capacity(0) => "l1_capacity(0)|l2(none)");
        refused!(l1_capacity(0).l1_weigher(|_, _| 1).l2(InProcess::new()) => "l1_capacity(0)|l1_weigher");
        refused!(l1_capacity(0).l1_ttl(Duration::from_secs(1)).l2(InProcess::new()) => "l1_capacity(0)|l1_ttl(1s)");
        refused!(cold_start_spread(true).ttl(Duration::from_millis(19)) => "cold_start_spread(true)|ttl(19ms)");
        for name in [String::new(), "x".repeat(101)] {
            let refusal: Refusal = Cache::builder(&name, loader()).build();
            assert!(
                refusal
                    .expect_err("a name")
                    .to_string()
                    .contains("1 to 100 bytes")
            );
        }
    }

    #[test]
    fn settings_at_their_bounds_and_names_of_any_bytes_are_taken() {
        let cache = Cache::builder("ünïcode: {name}\n", loader())
            .ttl(Duration::from_nanos(1))
            .ttl_jitter(0.0)
            .negative_ttl(Duration::ZERO)
            .negative_capacity(0)
            .l1_capacity(0)
            .degraded_l1_ttl(Duration::ZERO)
            .max_concurrent_loads(1)
            .error_backoff(Duration::ZERO)
            .lease_ttl(Duration::from_millis(50))
            .lease_wait(Duration::ZERO)
            .schema_version(u16::MAX)
            .max_record_bytes(1 << 10)
            .l2(InProcess::new());
        assert!(format!("{cache:?}").contains("ünïcode"));
        cache.build().expect("sound settings");
        Cache::builder("n", loader())
            .l1_weigher(|_, value| value.len() as u32)
            .build()
            .expect("sound settings");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn redis_settings_are_refused_by_name_and_no_secret_is_repeated() {
        use crate::Redis;
        let says = |result: Result<Redis, BuildError>| result.expect_err("refused").to_string();
        let url = "redis://user:secret@127.0.0.1:1";
        assert!(says(Redis::builder(url).prefix("").open()).contains("prefix(\"\")"));
        assert!(says(Redis::builder(url).prefix("a b").open()).contains("prefix"));
        assert!(says(Redis::builder(url).timeout(Duration::ZERO).open()).contains("timeout(0ns)"));
        assert!(
            says(Redis::builder(url).connect_timeout(Duration::MAX).open())
                .contains("connect_timeout")
        );
        assert!(says(Redis::builder(url).connections(0).open()).contains("connections(0)"));
        for bad in [
            "",
            "nonsense",
            "redis://user:secret@:x",
            "redis://secret@host:99999",
        ] {
            let text = says(Redis::open(bad));
            assert!(text.contains("URL") && !text.contains("secret"), "{text}");
        }
        let redis = Redis::open(url).expect("a sound URL");
        let debug = format!("{redis:?} {:?}", Redis::builder(url));
        assert!(!debug.contains("secret"), "{debug}");
    }
}
