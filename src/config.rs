//! The validated settings of one cache, with what is derived from them.

use std::time::Duration;

use crate::health::OnEvent;
use crate::lifetime::Windows;
use crate::random;
use crate::ttl;

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) ttl: Duration,
    pub(crate) ttl_jitter: f64,
    pub(crate) cold_start_spread: bool,
    pub(crate) negative_ttl: Duration,
    pub(crate) negative_capacity: u64,
    pub(crate) l1_capacity: u64,
    /// `None`: as long as the entry is fresh.
    pub(crate) l1_ttl: Option<Duration>,
    pub(crate) degraded_l1_ttl: Duration,
    pub(crate) channel_lease: Duration,
    pub(crate) hold_off: Duration,
    pub(crate) load_timeout: Duration,
    pub(crate) load_soft_timeout: Option<Duration>,
    pub(crate) windows: Windows,
    pub(crate) max_concurrent_loads: Option<usize>,
    pub(crate) error_backoff: Duration,
    pub(crate) lease_ttl: Duration,
    pub(crate) lease_wait: Duration,
    pub(crate) schema_version: u16,
    pub(crate) max_record_bytes: usize,
    pub(crate) on_event: Option<OnEvent>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(300),
            ttl_jitter: 0.1,
            cold_start_spread: false,
            negative_ttl: Duration::from_secs(30),
            negative_capacity: 10_000,
            l1_capacity: 10_000,
            l1_ttl: None,
            degraded_l1_ttl: Duration::from_secs(5),
            channel_lease: Duration::from_secs(2),
            hold_off: Duration::ZERO,
            load_timeout: Duration::from_secs(30),
            load_soft_timeout: None,
            windows: Windows {
                ahead: 1.0,
                ..Windows::default()
            },
            max_concurrent_loads: None,
            error_backoff: Duration::from_millis(200),
            lease_ttl: Duration::from_secs(2),
            lease_wait: Duration::from_secs(10),
            schema_version: 0,
            max_record_bytes: 8 << 20,
            on_event: None,
        }
    }
}

impl Config {
    /// No duration is longer than [`ttl::LONGEST`], with which all arithmetic works.
    pub(crate) fn bounded(mut self) -> Self {
        for duration in [
            &mut self.ttl,
            &mut self.negative_ttl,
            &mut self.degraded_l1_ttl,
            &mut self.channel_lease,
            &mut self.hold_off,
            &mut self.load_timeout,
            &mut self.windows.while_revalidate,
            &mut self.windows.if_error,
            &mut self.error_backoff,
            &mut self.lease_ttl,
            &mut self.lease_wait,
        ] {
            *duration = (*duration).min(ttl::LONGEST);
        }
        self.load_soft_timeout = self.load_soft_timeout.map(|after| after.min(ttl::LONGEST));
        self.l1_ttl = self.l1_ttl.map(|l1_ttl| l1_ttl.min(ttl::LONGEST));
        self
    }

    /// How long a newly loaded value is fresh. `asked`: the TTL that the loader set.
    pub(crate) fn draw_ttl(&self, asked: Option<Duration>, first_life: bool) -> Duration {
        let ttl = asked.unwrap_or(self.ttl).min(ttl::LONGEST);
        if first_life && self.cold_start_spread {
            ttl::first_life(ttl, random::share())
        } else {
            ttl::jittered(ttl, self.ttl_jitter, random::share())
        }
    }

    /// How long L1 may answer an entry that it has just stored. Each process draws for itself, so
    /// that the processes of a fleet do not all come back to L2 together.
    pub(crate) fn l1_lifetime(&self) -> Duration {
        self.l1_ttl.map_or(ttl::LONGEST, |bound| {
            ttl::jittered(bound, self.ttl_jitter, random::share())
        })
    }

    /// How long L2 keeps an entry that is fresh for `life`.
    pub(crate) fn hard_ttl(&self, life: Duration, has_stale_windows: bool) -> Duration {
        if has_stale_windows {
            life + self.windows.longest()
        } else {
            life
        }
    }
}
