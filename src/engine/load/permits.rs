//! The load limiter: the permits of `max_concurrent_loads`, with a queue by priority and deadline.
//!
//! | priority | load | turn |
//! |---|---|---|
//! | warm | a refresh, or a load of a key that has an older value | first: it keeps hits from becoming misses |
//! | cold | a load of a key without a value | when no warm load waits |
//!
//! Loads of the same priority take turns in the order in which they came. Under an overload that
//! lasts, cold keys starve before warm ones do. So a cache that was lost recovers key by key, and
//! is not held down by values that it cannot keep.
//!
//! A load that could not end before its deadline is refused at once, so it does not make the queue
//! longer for others. A permit that becomes free too late for a load goes to the next one. A load
//! that is begun and cut off is useless work, and the source may go on with it. Without these two
//! rules a full queue would hold only loads of this kind, because all of them have waited almost up
//! to their deadlines. (Bronson et al., "Metastable Failures in Distributed Systems", HotOS 2021.)

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How urgent a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// The key has an older value.
    Warm,
    /// The key has no value.
    Cold,
}

/// The permits of one cache, and the loads that wait for one.
#[derive(Debug)]
pub(crate) struct LoadLimiter {
    max_permits: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    free: usize,
    warm: VecDeque<Waiter>,
    cold: VecDeque<Waiter>,
    hold_time: Option<HoldTime>,
}

#[derive(Debug)]
struct Waiter {
    permit: oneshot::Sender<Permit>,
    deadline: Instant,
}

/// How long permits are held: moving averages.
#[derive(Clone, Copy, Debug)]
struct HoldTime {
    mean: Duration,
    /// The mean distance from the mean.
    deviation: Duration,
}

impl HoldTime {
    /// An upper estimate: most permits are held for less. One load that hangs raises it only a
    /// little.
    fn upper(self) -> Duration {
        self.mean.saturating_add(self.deviation.saturating_mul(2))
    }
}

/// A permit that is held. Dropped, it goes to the next load.
#[derive(Debug)]
pub(crate) struct Permit {
    limiter: Arc<LoadLimiter>,
    since: Instant,
}

/// The load gets no permit in time, so it would not end before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WouldTimeOut;

impl LoadLimiter {
    pub(crate) fn new(max_permits: usize) -> Self {
        let queue = Queue {
            free: max_permits,
            ..Queue::default()
        };
        Self {
            max_permits,
            queue: Mutex::new(queue),
        }
    }

    /// Waits for a permit, until the deadline at most. Cancel safe: a dropped wait leaves the
    /// queue.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        priority: Priority,
        deadline: Instant,
    ) -> Result<Permit, WouldTimeOut> {
        let waiting = {
            let now = Instant::now();
            let mut queue = self.queue.lock();
            if queue.free > 0 {
                queue.free -= 1;
                return Ok(self.permit(now));
            }
            queue.drop_cancelled();
            let left = deadline.saturating_duration_since(now);
            if queue
                .expected_time(priority, self.max_permits)
                .is_some_and(|time| time > left)
            {
                return Err(WouldTimeOut);
            }
            let (permit, waiting) = oneshot::channel();
            queue.of(priority).push_back(Waiter { permit, deadline });
            waiting
        };
        match tokio::time::timeout_at(deadline, waiting).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(WouldTimeOut),
        }
    }

    fn permit(self: &Arc<Self>, since: Instant) -> Permit {
        Permit {
            limiter: Arc::clone(self),
            since,
        }
    }

    /// How many loads wait.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        let mut queue = self.queue.lock();
        queue.drop_cancelled();
        queue.warm.len() + queue.cold.len()
    }
}

impl Queue {
    fn of(&mut self, priority: Priority) -> &mut VecDeque<Waiter> {
        match priority {
            Priority::Warm => &mut self.warm,
            Priority::Cold => &mut self.cold,
        }
    }

    /// How long a load that comes now is expected to take, with its wait. `None`: not known yet.
    fn expected_time(&self, priority: Priority, max_permits: usize) -> Option<Duration> {
        let before = match priority {
            Priority::Warm => self.warm.len(),
            Priority::Cold => self.warm.len() + self.cold.len(),
        };
        let hold_time = self.hold_time?;
        let rounds = u32::try_from(before / max_permits.max(1)).unwrap_or(u32::MAX);
        let wait = hold_time.mean.saturating_mul(rounds);
        Some(wait.saturating_add(hold_time.upper()))
    }

    /// Takes loads off the queue that do not wait any more.
    fn drop_cancelled(&mut self) {
        for queue in [&mut self.warm, &mut self.cold] {
            // Only at the front, where a load is when its deadline has come. So each is looked at
            // once.
            while queue
                .front()
                .is_some_and(|waiter| waiter.permit.is_closed())
            {
                queue.pop_front();
            }
        }
    }

    /// The load that gets the permit that is free now. Loads before it for which the permit comes
    /// too late are refused.
    fn next_waiter(&mut self, now: Instant) -> Option<oneshot::Sender<Permit>> {
        let least = self.hold_time.map_or(Duration::ZERO, HoldTime::upper);
        loop {
            self.drop_cancelled();
            let waiter = self.warm.pop_front().or_else(|| self.cold.pop_front())?;
            if waiter.deadline.saturating_duration_since(now) >= least {
                return Some(waiter.permit);
            }
        }
    }

    fn note_hold_time(&mut self, held: Duration) {
        let first = HoldTime {
            mean: held,
            deviation: Duration::ZERO,
        };
        self.hold_time = Some(self.hold_time.map_or(first, |before| HoldTime {
            mean: before.mean / 8 * 7 + held / 8,
            deviation: before.deviation / 8 * 7 + before.mean.abs_diff(held) / 8,
        }));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        let next_waiter = {
            let mut queue = self.limiter.queue.lock();
            let held = now.saturating_duration_since(self.since);
            if !held.is_zero() {
                queue.note_hold_time(held);
            }
            let next_waiter = queue.next_waiter(now);
            if next_waiter.is_none() {
                queue.free += 1;
            }
            next_waiter
        };
        if let Some(next_waiter) = next_waiter {
            // If the load was cancelled at this moment, the permit is dropped here and goes to the
            // next.
            drop(next_waiter.send(self.limiter.permit(now)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn later(seconds: u32) -> Instant {
        Instant::now() + SECOND * seconds
    }

    async fn queued(
        limiter: &Arc<LoadLimiter>,
        priority: Priority,
    ) -> tokio::task::JoinHandle<Result<Permit, WouldTimeOut>> {
        queued_until(limiter, priority, later(100)).await
    }

    async fn queued_until(
        limiter: &Arc<LoadLimiter>,
        priority: Priority,
        deadline: Instant,
    ) -> tokio::task::JoinHandle<Result<Permit, WouldTimeOut>> {
        let (waiting, mine) = (limiter.waiting(), Arc::clone(limiter));
        let task = tokio::spawn(async move { mine.acquire(priority, deadline).await });
        while limiter.waiting() == waiting && !task.is_finished() {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test(start_paused = true)]
    async fn known_keys_go_first_and_each_kind_in_its_order() {
        let limiter = Arc::new(LoadLimiter::new(1));
        let mut held = limiter.acquire(Priority::Cold, later(1)).await.unwrap();
        let mut waiting = Vec::new();
        for priority in [
            Priority::Cold,
            Priority::Cold,
            Priority::Warm,
            Priority::Warm,
        ] {
            waiting.push(queued(&limiter, priority).await);
        }
        for next_waiter in [2, 3, 0, 1] {
            drop(held);
            tokio::task::yield_now().await;
            for (at, task) in waiting.iter().enumerate() {
                assert_eq!(
                    task.is_finished(),
                    at == next_waiter,
                    "{at}, when {next_waiter} is next"
                );
            }
            let done = std::mem::replace(
                &mut waiting[next_waiter],
                tokio::spawn(std::future::pending()),
            );
            held = done.await.unwrap().unwrap();
        }
        drop(held);
        assert_eq!(limiter.queue.lock().free, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_holds_up_nobody_and_takes_no_place_along() {
        let limiter = Arc::new(LoadLimiter::new(1));
        let held = limiter.acquire(Priority::Warm, later(1)).await.unwrap();
        let (gone, stays) = (
            queued(&limiter, Priority::Warm).await,
            queued(&limiter, Priority::Warm).await,
        );
        gone.abort();
        let _ = gone.await;
        drop(held);
        drop(stays.await.unwrap().unwrap());
        // And a load that is cancelled at the moment at which it gets a permit.
        let held = limiter.acquire(Priority::Warm, later(1)).await.unwrap();
        let late = queued(&limiter, Priority::Warm).await;
        drop(held);
        late.abort();
        let _ = late.await;
        assert_eq!(limiter.waiting(), 0);
        assert_eq!(limiter.queue.lock().free, 1);
    }

    /// A load of one second is under way, and two others wait with this many tenths of a second
    /// left after it.
    async fn after_one_of_a_second(left: [u32; 2]) -> [Result<Instant, WouldTimeOut>; 2] {
        let limiter = Arc::new(LoadLimiter::new(1));
        let held = limiter.acquire(Priority::Cold, later(1)).await.unwrap();
        tokio::time::advance(SECOND).await;
        drop(held);
        let held = limiter.acquire(Priority::Cold, later(9)).await.unwrap();
        let waits = left.map(|left| {
            let (limiter, deadline) = (Arc::clone(&limiter), later(1) + SECOND / 10 * left);
            tokio::spawn(async move {
                let permit = limiter.acquire(Priority::Cold, deadline).await;
                permit.map(|_permit| Instant::now())
            })
        });
        tokio::task::yield_now().await;
        tokio::time::advance(SECOND).await;
        drop(held);
        let [first, second] = waits;
        [first.await.unwrap(), second.await.unwrap()]
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_comes_too_late_for_a_load_goes_to_the_next_one() {
        let [first, second] = after_one_of_a_second([10, 20]).await;
        assert!(first.is_ok() && second.is_ok());
        // The queue accepts both, but on its turn the first has not enough time left.
        let [first, second] = after_one_of_a_second([9, 20]).await;
        assert_eq!(first, Err(WouldTimeOut));
        assert_eq!(second, Ok(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hung_keeps_nobody_from_waiting() {
        let limiter = Arc::new(LoadLimiter::new(1));
        let mut held = limiter.acquire(Priority::Cold, later(30)).await.unwrap();
        for seconds in [1, 1, 1, 1, 30] {
            tokio::time::advance(SECOND * seconds).await;
            drop(held);
            held = limiter.acquire(Priority::Cold, later(30)).await.unwrap();
        }
        let waits = queued_until(&limiter, Priority::Cold, later(30)).await;
        tokio::time::advance(SECOND).await;
        drop(held);
        drop(waits.await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_time_to_wait_but_not_to_load_is_told_at_once() {
        let limiter = Arc::new(LoadLimiter::new(1));
        let held = limiter.acquire(Priority::Cold, later(1)).await.unwrap();
        tokio::time::advance(SECOND * 2).await;
        drop(held);
        let held = limiter.acquire(Priority::Cold, later(9)).await.unwrap();
        let waits = queued(&limiter, Priority::Cold).await;
        let begun = Instant::now();
        // One round of two seconds before its own.
        let late = limiter.acquire(Priority::Cold, later(3)).await;
        assert_eq!(late.unwrap_err(), WouldTimeOut);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop(held);
        drop(waits.await.unwrap().unwrap());
        assert_eq!(limiter.queue.lock().free, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_come_too_late_is_told_at_once() {
        let limiter = Arc::new(LoadLimiter::new(2));
        let held = [
            limiter.acquire(Priority::Cold, later(1)).await.unwrap(),
            limiter.acquire(Priority::Cold, later(1)).await.unwrap(),
        ];
        // It is not known yet how long a load takes, so each may wait until its deadline.
        let begun = Instant::now();
        assert_eq!(
            limiter.acquire(Priority::Cold, later(1)).await.unwrap_err(),
            WouldTimeOut
        );
        assert_eq!(begun.elapsed(), SECOND);
        tokio::time::advance(SECOND).await;
        drop(held);
        let held = [
            limiter.acquire(Priority::Cold, later(1)).await.unwrap(),
            limiter.acquire(Priority::Cold, later(1)).await.unwrap(),
        ];
        let mut waiting = Vec::new();
        for _ in 0..6 {
            waiting.push(queued(&limiter, Priority::Cold).await);
        }
        let begun = Instant::now();
        // Three rounds of two seconds before its own.
        assert_eq!(
            limiter.acquire(Priority::Cold, later(5)).await.unwrap_err(),
            WouldTimeOut
        );
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let warm = queued(&limiter, Priority::Warm).await;
        drop(held);
        drop(warm.await.unwrap().unwrap());
        for waits in waiting {
            drop(waits.await.unwrap().unwrap());
        }
        assert_eq!(limiter.queue.lock().free, 2);
    }
}
