//! The contract of the shared tier: each test runs on `InProcess` and on Redis. Several caches of
//! one name on one tier stand for several processes.

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
mod random_traffic;
mod reads;
mod refresh;
mod reload;
mod stale;
mod values;
mod versions;
mod waiting;
mod warm;
mod watermarks;
mod writes;
