//! The operations of a shared tier: one private trait, which every tier implements.
//!
//! [`tier_operations!`] holds each signature once. Two macros take the list: one makes the trait of
//! it, one makes the methods of [`Tier`](super::Tier), which call the tier in use and measure the
//! call. Another client for Redis is another implementation of the trait.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;

use super::listener::Listener;
use crate::error::RemoteError;
use crate::protocol::record::Watermarks;
use crate::protocol::record::{Expiry, Head};
use crate::protocol::request::{
    Acquired, Keys, Publication, RecordRead, RefreshWrite, Replacing, WatermarkRequest,
};

/// Gives the list of operations to a macro. `local` methods answer at once, without I/O. Each of
/// the `remote` ones touches one key, is one round trip, and is atomic; its name is what metrics
/// and traces call it. A block after a signature runs in [`Tier`](super::Tier) before the
/// measurement.
macro_rules! tier_operations {
    ($take:ident) => {
        $take! {
            local {
                /// What every key of this tier begins with.
                fn prefix(&self) -> &str;

                /// Whether messages come without a connection that could be lost.
                fn is_direct(&self) -> bool;

                /// How long an operation may take at most.
                fn timeout(&self) -> Duration;

                /// What the server denies to the user, as far as is known.
                fn denied(&self) -> Option<Arc<str>>;

                /// The server's clock in milliseconds since the epoch, once it is known.
                fn now_ms(&self) -> Option<u64>;

                /// Begins to listen to a channel, until the listener is dropped. Returns at once;
                /// `on_up` or `on_down` follows.
                fn listen(&self, channel: &Bytes, listener: Weak<dyn Listener>) -> ();

                /// Ends listening for listeners that were dropped.
                fn unlisten(&self, channel: &Bytes) -> ();

                /// Makes the connection of the bus anew: it has been silent for too long.
                fn renew_bus(&self) -> ();
            }
            remote {
                /// Reads a record.
                fn get(&self, key: &Bytes) -> Result<Option<Bytes>, RemoteError>;

                /// Reads many records in one round trip to each node. The answers are in the order
                /// of the keys. The second part is the first error, if there was one.
                fn get_many(&self, keys: &[Bytes]) -> (Vec<RecordRead>, Result<(), RemoteError>) {
                    if keys.is_empty() {
                        return (Vec::new(), Ok(()));
                    }
                };

                /// Stores a lease if the key still holds what the lease is acquired over. The lease
                /// takes the place of the record; to refresh the record, it becomes its claim. A
                /// lease whose load began before everything was invalidated counts as nothing. If
                /// the record or the claim is the lease of another process, marks that lease as
                /// waited for.
                fn acquire(
                    &self,
                    keys: &Keys,
                    lease: Vec<u8>,
                    ttl_ms: u64,
                    over: Replacing<'_>,
                    known: Watermarks
                ) -> Result<Acquired, RemoteError>;

                /// Gives up the claim with this head and wakes its waiters. If the record still
                /// begins with `seen`, stores the result of the refresh. `false`: the record was
                /// changed meanwhile, nothing was stored.
                fn refill(
                    &self,
                    keys: &Keys,
                    seen: &[u8],
                    head: Head,
                    refill: RefreshWrite,
                    ttl_ms: u64,
                    wake: Publication
                ) -> Result<bool, RemoteError>;

                /// Stores a record if the key still holds the one with this head, and wakes the
                /// waiters of the lease that it replaces. `false`: the head was gone, nothing was
                /// stored.
                fn replace(
                    &self,
                    key: &Bytes,
                    head: Head,
                    record: Vec<u8>,
                    ttl_ms: u64,
                    wake: Publication
                ) -> Result<bool, RemoteError>;

                /// Extends the life of the lease with this head, and of the record that it is the
                /// claim to refresh. `false`: the lease is lost.
                fn renew(
                    &self,
                    key: &Bytes,
                    refreshed: Option<&Bytes>,
                    head: Head,
                    ttl_ms: u64
                ) -> Result<bool, RemoteError>;

                /// Drops the lease with this head and wakes its waiters. `false`: it was gone.
                fn release(
                    &self,
                    key: &Bytes,
                    head: Head,
                    wake: Publication
                ) -> Result<bool, RemoteError>;

                /// Drops all that the key holds, a lease and a claim too, and publishes the notice.
                /// It publishes also if the key held nothing, because a load may be running. With
                /// `hold_off`, stores that record for that many milliseconds instead.
                fn invalidate(
                    &self,
                    keys: &Keys,
                    hold_off: Option<(Vec<u8>, u64)>,
                    publication: Publication
                ) -> Result<(), RemoteError>;

                /// Changes the state of the entry that the key holds. Drops anything else but a
                /// hold-off.
                fn expire(
                    &self,
                    keys: &Keys,
                    state: Expiry,
                    publication: Publication
                ) -> Result<(), RemoteError>;

                /// Stores a record over anything that the key holds, and publishes the notice. If
                /// `versioned`, an entry with a later version stays, and the answer is `false`.
                fn insert(
                    &self,
                    keys: &Keys,
                    record: Vec<u8>,
                    versioned: bool,
                    ttl_ms: u64,
                    publication: Publication
                ) -> Result<bool, RemoteError>;

                /// Reads the marks of a cache, and raises one if asked to. Answers the marks and
                /// the latest mark of the tags asked for.
                fn marks(&self, key: &Bytes, look: WatermarkRequest) -> Result<(Watermarks, u64), RemoteError>;

                /// Sends a message with the marks through the bus to this process alone. It comes
                /// back on the connection that receives the messages of others.
                fn beat(
                    &self,
                    key: &Bytes,
                    known: Watermarks,
                    message: Vec<u8>
                ) -> Result<(), RemoteError>;
            }
        }
    };
}
pub(crate) use tier_operations;

macro_rules! define_trait {
    (
        local {$(
            $(#[$local_doc:meta])*
            fn $local:ident(&self $(, $local_arg:ident: $local_type:ty)*) -> $local_out:ty;
        )*}
        remote {$(
            $(#[$doc:meta])*
            fn $name:ident(&self $(, $arg:ident: $type:ty)*) -> $out:ty $({ $($before:tt)* })?;
        )*}
    ) => {
        /// What a shared tier does. See the methods for what each operation promises.
        pub(crate) trait TierOperations {
            $(
                $(#[$local_doc])*
                fn $local(&self $(, $local_arg: $local_type)*) -> $local_out;
            )*
            $(
                $(#[$doc])*
                fn $name(&self $(, $arg: $type)*) -> impl Future<Output = $out> + Send;
            )*
        }
    };
}

tier_operations!(define_trait);
