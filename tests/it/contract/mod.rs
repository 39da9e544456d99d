//! What holds on every shared tier: the same functions run on `InProcess` and on Redis. Several
//! caches of one name on one tier stand for several processes.

mod backoff;
mod batch_window;
mod coalescing;
mod coherence;
mod expire;
mod fallback;
mod fence;
mod leases;
mod many;
mod races;
mod reads;
mod refresh;
mod reload;
mod stale;
mod storm;
mod values;
mod versions;
mod waiting;
mod warm;
mod watermarks;
mod writes;
