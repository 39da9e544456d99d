//! The shared tier: what it can do, in the words of the protocol.
//!
//! [`Tier`] is the only thing that the engine knows of it. Every operation touches one key, is one
//! round trip, and is atomic. Whatever replaces or removes a record makes a later [`Tier::replace`]
//! against the head of that record lose; that is the whole fence.

use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::codec::envelope::{Expiry, Head};
use crate::engine::watermarks::Watermarks;
use crate::error::RemoteError;
use crate::telemetry::Telemetry;

mod in_process;
#[cfg(feature = "testing")]
pub(crate) use in_process::faults;
pub(crate) mod message;
#[cfg(feature = "redis")]
pub(crate) mod redis;

pub use in_process::InProcess;
#[cfg(all(test, feature = "bincode"))]
pub(crate) use in_process::{Gate, When};

/// What a listener hears from the bus. Called from the tier's own task: it must be quick and must
/// not block.
pub(crate) trait Listener: Send + Sync {
    /// A message on the channel.
    fn on_message(&self, message: &[u8]);
    /// The subscription is confirmed: from now on nothing is missed. What was said before may have
    /// been.
    fn on_up(&self);
    /// The subscription is lost, or could not be made.
    #[cfg(any(feature = "redis", feature = "testing", all(test, feature = "bincode")))]
    fn on_down(&self);
    /// The subscription stands, but something was missed.
    fn on_gap(&self);
    /// The tier is not asked any more, or again.
    #[cfg(feature = "redis")]
    fn on_breaker(&self, _open: bool) {}
    /// The server denies something to the user, or nothing any more.
    #[cfg(feature = "redis")]
    fn on_denied(&self, _denied: bool) {}
}

/// A record, and beside it the claim of whoever refreshes it: a lease in a key of its own, because the
/// record stays what it is until the new value is there.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) record: Bytes,
    pub(crate) claim: Bytes,
}

impl Keys {
    /// `prefix:users::{prefix:users:42}` for `prefix:users:42`: on the same node of a cluster, within the
    /// same prefix for access rules, and the name of no record, for encoded keys hold no `:`.
    pub(crate) fn of(record: &Bytes) -> Self {
        let key_at = record
            .iter()
            .rposition(|byte| *byte == b':')
            .map_or(0, |at| at + 1);
        let (namespace, key) = record.split_at(key_at);
        // A tag in the prefix decides for both; without one the whole record's key does.
        let claim = if namespace.contains(&b'{') {
            [namespace, b":claim:", key].concat()
        } else {
            [namespace, b":{", record, b"}"].concat()
        };
        Self {
            record: record.clone(),
            claim: claim.into(),
        }
    }
}

/// What a key holds: a record or nothing. `Err`: L2 is not to be asked, or did not answer.
pub(crate) type Read = Result<Option<Bytes>, ()>;

/// What a lease is to be acquired for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Over<'a> {
    /// To fill a key that holds nothing.
    Nothing,
    /// To replace a record that begins with this, and that nobody needs any more.
    Useless(&'a [u8]),
    /// To refresh an entry that begins with this, and stays until then.
    Entry(&'a [u8]),
}

/// What an attempt to acquire a lease came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// The lease is ours. So many loads have failed in a row, as far as is known.
    Granted(u32),
    /// Somebody else's, for so many milliseconds more; they know that we wait.
    Held(u64),
    /// A refresh failed a moment ago; no attempt for so many milliseconds.
    Failed(u64),
    /// There is something else than what was seen, or nothing any more.
    Record(Option<Bytes>),
}

/// What a refresh came to.
#[derive(Debug)]
pub(crate) enum Refill {
    /// A record.
    Record(Vec<u8>),
    /// The header of what is there, with other times.
    Header(Vec<u8>),
    /// Nothing that may be stored: what is there is out of date and goes.
    Nothing,
}

/// The name of a bus channel, and what to say there.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) channel: Bytes,
    pub(crate) message: Bytes,
}

/// What is to be invalidated as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advance {
    Nothing,
    All,
    Tag(u64),
}

/// A look at the marks of a cache.
#[derive(Clone, Debug)]
pub(crate) struct WatermarkRequest {
    pub(crate) advance: Advance,
    /// What the caller knows: a server that knows less has lost some.
    pub(crate) known: Watermarks,
    /// Tags whose latest mark is wanted.
    pub(crate) tags: Vec<u64>,
    /// Told with the marks.
    pub(crate) notice: Option<Notice>,
}

/// How long the marks live after somebody last looked at them.
#[cfg(feature = "redis")]
const MARKS_TTL: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// Adds the marks to a message about them.
fn with_watermarks(mut message: Vec<u8>, watermarks: Watermarks) -> Vec<u8> {
    for number in [watermarks.incarnation, watermarks.current, watermarks.all] {
        message.extend_from_slice(&number.to_le_bytes());
    }
    message
}

/// An era in case there is none: random, and small enough for every script to reckon with.
fn new_incarnation() -> u64 {
    (crate::random::number() >> 12).max(1)
}

/// A tier: see the module. What is asked of it is measured.
#[derive(Clone)]
pub(crate) struct Tier {
    at: At,
    telemetry: Arc<Telemetry>,
}

#[derive(Clone, Debug)]
pub(crate) enum At {
    #[cfg(feature = "redis")]
    Redis(redis::Redis),
    InProcess(InProcess),
}

impl fmt::Debug for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}

/// Sends every operation on to the tier that is there.
macro_rules! each {
    ($self:expr, $tier:ident => $what:expr) => {
        match &$self.at {
            #[cfg(feature = "redis")]
            At::Redis($tier) => $what,
            At::InProcess($tier) => $what,
        }
    };
}

/// The same for what is one operation of the protocol. Not a function, which would hold the future twice.
macro_rules! measured {
    ($self:expr, $operation:literal, $tier:ident => $what:expr) => {{
        let measure = $self.telemetry.measure($self.system(), $operation);
        let outcome = match &$self.at {
            #[cfg(feature = "redis")]
            At::Redis($tier) => measure.trace.within($what).await,
            At::InProcess($tier) => measure.trace.within($what).await,
        };
        measure.end(&outcome);
        outcome
    }};
}

impl Tier {
    pub(crate) fn new(at: At, telemetry: Arc<Telemetry>) -> Self {
        Self { at, telemetry }
    }

    /// As OpenTelemetry names systems.
    fn system(&self) -> &'static str {
        match &self.at {
            #[cfg(feature = "redis")]
            At::Redis(_) => "redis",
            At::InProcess(_) => "in_process",
        }
    }

    /// What every key of this tier begins with.
    pub(crate) fn prefix(&self) -> &str {
        each!(self, tier => tier.prefix())
    }

    /// Whether messages come without a connection that could be lost.
    pub(crate) fn is_direct(&self) -> bool {
        match &self.at {
            #[cfg(feature = "redis")]
            At::Redis(_) => false,
            At::InProcess(tier) => tier.is_direct(),
        }
    }

    /// How long an operation may take at most.
    pub(crate) fn timeout(&self) -> std::time::Duration {
        each!(self, tier => tier.timeout())
    }

    /// What the server denies to the user, as far as is known.
    pub(crate) fn denied(&self) -> Option<Arc<str>> {
        match &self.at {
            #[cfg(feature = "redis")]
            At::Redis(redis) => redis.denied(),
            At::InProcess(_) => None,
        }
    }

    /// The server's clock in milliseconds since the epoch, once it is known.
    pub(crate) fn now_ms(&self) -> Option<u64> {
        each!(self, tier => tier.now_ms())
    }

    /// Begins to listen to a channel, until the listener is gone. Returns at once; `on_up` or
    /// `on_down` follows.
    pub(crate) fn listen(&self, channel: &Bytes, listener: Weak<dyn Listener>) {
        each!(self, tier => tier.listen(channel, listener));
    }

    /// Ends listening for listeners that are gone.
    pub(crate) fn unlisten(&self, channel: &Bytes) {
        each!(self, tier => tier.unlisten(channel));
    }

    /// Reads a record.
    pub(crate) async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, RemoteError> {
        measured!(self, "get", tier => tier.get(key))
    }

    /// Reads many records in one round trip to each node, in the order of their keys. With the first
    /// error, if there was one.
    pub(crate) async fn get_many(&self, keys: &[Bytes]) -> (Vec<Read>, Result<(), RemoteError>) {
        if keys.is_empty() {
            return (Vec::new(), Ok(()));
        }
        measured!(self, "get_many", tier => tier.get_many(keys))
    }

    /// Stores a lease where there is still what it is acquired over: in the place of the record, or, to
    /// refresh it, as its claim. A lease whose load began before everything was invalidated counts as
    /// nothing. Where there is another one, in either place, marks it as waited for.
    pub(crate) async fn acquire(
        &self,
        keys: &Keys,
        lease: Vec<u8>,
        ttl_ms: u64,
        over: Over<'_>,
        known: Watermarks,
    ) -> Result<Acquired, RemoteError> {
        measured!(self, "acquire", tier => tier.acquire(keys, lease, ttl_ms, over, known))
    }

    /// Gives up the claim with this head and wakes its waiters; where the record still begins with
    /// `seen`, stores what came of it. `false`: the record was changed meanwhile, nothing was stored.
    pub(crate) async fn refill(
        &self,
        keys: &Keys,
        seen: &[u8],
        head: Head,
        refill: Refill,
        ttl_ms: u64,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        measured!(self, "refill", tier => tier.refill(keys, seen, head, refill, ttl_ms, wake))
    }

    /// Stores a record where the one with this head still is, and wakes the waiters of the lease
    /// that it replaces. `false`: it was not there any more, nothing was stored.
    pub(crate) async fn replace(
        &self,
        key: &Bytes,
        head: Head,
        record: Vec<u8>,
        ttl_ms: u64,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        measured!(self, "replace", tier => tier.replace(key, head, record, ttl_ms, wake))
    }

    /// Lets the lease with this head live longer, and what it is the claim to refresh. `false`: it is
    /// lost.
    pub(crate) async fn renew(
        &self,
        key: &Bytes,
        refreshed: Option<&Bytes>,
        head: Head,
        ttl_ms: u64,
    ) -> Result<bool, RemoteError> {
        measured!(self, "renew", tier => tier.renew(key, refreshed, head, ttl_ms))
    }

    /// Drops the lease with this head and wakes its waiters. `false`: it was not there any more.
    pub(crate) async fn release(
        &self,
        key: &Bytes,
        head: Head,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        measured!(self, "release", tier => tier.release(key, head, wake))
    }

    /// Drops whatever the key holds, a lease and a claim too, and says so; also where there was
    /// nothing, for a load may be running. With `hold_off`, a record to put in its place and its
    /// milliseconds.
    pub(crate) async fn invalidate(
        &self,
        keys: &Keys,
        hold_off: Option<(Vec<u8>, u64)>,
        notice: Notice,
    ) -> Result<(), RemoteError> {
        measured!(self, "invalidate", tier => tier.invalidate(keys, hold_off, notice))
    }

    /// Changes the state of the entry that the key holds, and drops anything else but a hold-off.
    pub(crate) async fn expire(
        &self,
        keys: &Keys,
        state: Expiry,
        notice: Notice,
    ) -> Result<(), RemoteError> {
        measured!(self, "expire", tier => tier.expire(keys, state, notice))
    }

    /// Stores a record whatever was there, and says so. With a version, only where what is there has
    /// no later one: `false` says that it has.
    pub(crate) async fn insert(
        &self,
        keys: &Keys,
        record: Vec<u8>,
        versioned: bool,
        ttl_ms: u64,
        notice: Notice,
    ) -> Result<bool, RemoteError> {
        measured!(self, "insert", tier => tier.insert(keys, record, versioned, ttl_ms, notice))
    }

    /// Looks at the marks of a cache, and raises one if asked to. Answers the marks and the latest
    /// one that concerns the tags.
    pub(crate) async fn marks(
        &self,
        key: &Bytes,
        look: WatermarkRequest,
    ) -> Result<(Watermarks, u64), RemoteError> {
        measured!(self, "marks", tier => tier.marks(key, look))
    }

    /// Sends a message with the marks through the bus to this process alone, on the connection that
    /// hears the others.
    pub(crate) async fn beat(
        &self,
        key: &Bytes,
        known: Watermarks,
        message: Vec<u8>,
    ) -> Result<(), RemoteError> {
        measured!(self, "beat", tier => tier.beat(key, known, message))
    }

    /// The connection of the bus says nothing any more: begin anew.
    pub(crate) fn renew_bus(&self) {
        each!(self, tier => tier.renew_bus());
    }
}

/// A shared tier to give to [`CacheBuilder::l2`](crate::CacheBuilder::l2): [`Redis`](crate::Redis)
/// or [`InProcess`]. Sealed: the protocol between the engine and a tier is not public.
pub trait SharedTier: sealed::Sealed {}

pub(crate) mod sealed {
    pub trait Sealed {
        #[doc(hidden)]
        fn into_tier(self) -> AnyTier;
    }

    /// A tier that nobody outside can look into.
    #[derive(Debug)]
    pub struct AnyTier(pub(crate) super::At);
}

impl SharedTier for InProcess {}

impl sealed::Sealed for InProcess {
    fn into_tier(self) -> sealed::AnyTier {
        sealed::AnyTier(At::InProcess(self))
    }
}

#[cfg(feature = "redis")]
impl SharedTier for redis::Redis {}

#[cfg(feature = "redis")]
impl sealed::Sealed for redis::Redis {
    fn into_tier(self) -> sealed::AnyTier {
        sealed::AnyTier(At::Redis(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_the_prefix_and_the_slot_of_its_record() {
        let claim = |record: &'static str| {
            let keys = Keys::of(&Bytes::from_static(record.as_bytes()));
            String::from_utf8(keys.claim.to_vec()).expect("a text")
        };
        assert_eq!(claim("app:users:42"), "app:users::{app:users:42}");
        assert_eq!(claim("a:b:users:%2f"), "a:b:users::{a:b:users:%2f}");
        assert_eq!(claim("{app}:users:42"), "{app}:users::claim:42");
        assert_eq!(claim("x{app}y:users:42"), "x{app}y:users::claim:42");
    }
}
