//! Places for loads: `max_concurrent_loads`, with a queue that knows who is to go first and who would
//! come too late.
//!
//! | who | goes |
//! |---|---|
//! | a refresh, or a load of something that was there before | first: it keeps hits from becoming misses |
//! | a load of something that nobody knows | then |
//!
//! Within each, first come first served. Under an overload that lasts, unknown keys starve before known
//! ones do: a cache that was lost comes back key by key, instead of being held down by what it cannot
//! keep. Whoever would not get a place in time for his load to end is told so at once, and does not make
//! the queue longer for others; and a place that comes too late is given to the next one. A load that is
//! begun and cut off is work for nobody, and the source may go on with it: where all that wait have waited
//! almost for as long as they can, there would be no other loads. (Bronson et al., "Metastable Failures in Distributed Systems", HotOS 2021.)

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Who waits for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Known,
    Unknown,
}

/// The places of one cache.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    free: usize,
    known: VecDeque<Waits>,
    unknown: VecDeque<Waits>,
    held_for: Option<HeldFor>,
}

#[derive(Debug)]
struct Waits {
    place: oneshot::Sender<Place>,
    deadline: Instant,
}

/// How long a place is held, on averages that forget.
#[derive(Clone, Copy, Debug)]
struct HeldFor {
    mean: Duration,
    /// How far from the mean.
    off: Duration,
}

impl HeldFor {
    /// Longer than most; one that hung does not count for much.
    fn upper(self) -> Duration {
        self.mean.saturating_add(self.off.saturating_mul(2))
    }
}

/// A place that is held; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    since: Instant,
}

/// The queue is so long that there is no place in time for a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hopeless;

impl Places {
    pub(crate) fn new(all: usize) -> Self {
        let queue = Queue {
            free: all,
            ..Queue::default()
        };
        Self {
            all,
            queue: Mutex::new(queue),
        }
    }

    /// Waits for a place, until the deadline at most. Cancel safe: whoever goes leaves the queue.
    pub(crate) async fn take(
        self: &Arc<Self>,
        turn: Turn,
        deadline: Instant,
    ) -> Result<Place, Hopeless> {
        let waits = {
            let now = Instant::now();
            let mut queue = self.queue.lock();
            if queue.free > 0 {
                queue.free -= 1;
                return Ok(self.place(now));
            }
            queue.forget_gone();
            let left = deadline.saturating_duration_since(now);
            if queue.wait(turn, self.all).is_some_and(|wait| wait > left) {
                return Err(Hopeless);
            }
            let (place, waits) = oneshot::channel();
            queue.of(turn).push_back(Waits { place, deadline });
            waits
        };
        match tokio::time::timeout_at(deadline, waits).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(Hopeless),
        }
    }

    fn place(self: &Arc<Self>, since: Instant) -> Place {
        Place {
            places: Arc::clone(self),
            since,
        }
    }

    /// How many wait.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        let mut queue = self.queue.lock();
        queue.forget_gone();
        queue.known.len() + queue.unknown.len()
    }
}

impl Queue {
    fn of(&mut self, turn: Turn) -> &mut VecDeque<Waits> {
        match turn {
            Turn::Known => &mut self.known,
            Turn::Unknown => &mut self.unknown,
        }
    }

    /// How long it would take whoever comes now to have waited and loaded, if others take as long as
    /// they did.
    fn wait(&self, turn: Turn, places: usize) -> Option<Duration> {
        let before = match turn {
            Turn::Known => self.known.len(),
            Turn::Unknown => self.known.len() + self.unknown.len(),
        };
        let held_for = self.held_for?;
        let rounds = u32::try_from(before / places.max(1)).unwrap_or(u32::MAX);
        let waits = held_for.mean.saturating_mul(rounds);
        Some(waits.saturating_add(held_for.upper()))
    }

    /// Those whose callers have gone are at no place of the queue.
    fn forget_gone(&mut self) {
        for queue in [&mut self.known, &mut self.unknown] {
            // Only at the front, where they are when their time is up: each is looked at once.
            while queue.front().is_some_and(|waits| waits.place.is_closed()) {
                queue.pop_front();
            }
        }
    }

    /// Who gets the place that came free now. Those for whom it comes too late are told so.
    fn next(&mut self, now: Instant) -> Option<oneshot::Sender<Place>> {
        let least = self.held_for.map_or(Duration::ZERO, HeldFor::upper);
        loop {
            self.forget_gone();
            let next = self
                .known
                .pop_front()
                .or_else(|| self.unknown.pop_front())?;
            if next.deadline.saturating_duration_since(now) >= least {
                return Some(next.place);
            }
        }
    }

    fn note(&mut self, held: Duration) {
        let first = HeldFor {
            mean: held,
            off: Duration::ZERO,
        };
        self.held_for = Some(self.held_for.map_or(first, |before| HeldFor {
            mean: before.mean / 8 * 7 + held / 8,
            off: before.off / 8 * 7 + before.mean.abs_diff(held) / 8,
        }));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        let next = {
            let mut queue = self.places.queue.lock();
            let held = now.saturating_duration_since(self.since);
            if !held.is_zero() {
                queue.note(held);
            }
            let next = queue.next(now);
            if next.is_none() {
                queue.free += 1;
            }
            next
        };
        if let Some(next) = next {
            // Refused by one who has gone this moment it is dropped, and goes on from there.
            drop(next.send(self.places.place(now)));
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
        places: &Arc<Places>,
        turn: Turn,
    ) -> tokio::task::JoinHandle<Result<Place, Hopeless>> {
        queued_until(places, turn, later(100)).await
    }

    async fn queued_until(
        places: &Arc<Places>,
        turn: Turn,
        deadline: Instant,
    ) -> tokio::task::JoinHandle<Result<Place, Hopeless>> {
        let (waiting, mine) = (places.waiting(), Arc::clone(places));
        let task = tokio::spawn(async move { mine.take(turn, deadline).await });
        while places.waiting() == waiting && !task.is_finished() {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test(start_paused = true)]
    async fn known_keys_go_first_and_each_kind_in_its_order() {
        let places = Arc::new(Places::new(1));
        let mut held = places.take(Turn::Unknown, later(1)).await.unwrap();
        let mut waiting = Vec::new();
        for turn in [Turn::Unknown, Turn::Unknown, Turn::Known, Turn::Known] {
            waiting.push(queued(&places, turn).await);
        }
        for next in [2, 3, 0, 1] {
            drop(held);
            tokio::task::yield_now().await;
            for (at, task) in waiting.iter().enumerate() {
                assert_eq!(task.is_finished(), at == next, "{at}, when {next} is next");
            }
            let done = std::mem::replace(&mut waiting[next], tokio::spawn(std::future::pending()));
            held = done.await.unwrap().unwrap();
        }
        drop(held);
        assert_eq!(places.queue.lock().free, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_holds_up_nobody_and_takes_no_place_along() {
        let places = Arc::new(Places::new(1));
        let held = places.take(Turn::Known, later(1)).await.unwrap();
        let (gone, stays) = (
            queued(&places, Turn::Known).await,
            queued(&places, Turn::Known).await,
        );
        gone.abort();
        let _ = gone.await;
        drop(held);
        drop(stays.await.unwrap().unwrap());
        // And one that goes at the very moment at which it is given a place.
        let held = places.take(Turn::Known, later(1)).await.unwrap();
        let late = queued(&places, Turn::Known).await;
        drop(held);
        late.abort();
        let _ = late.await;
        assert_eq!(places.waiting(), 0);
        assert_eq!(places.queue.lock().free, 1);
    }

    /// One of a second is under way; whoever waits has so long.
    async fn after_one_of_a_second(left: [u32; 2]) -> [Result<Instant, Hopeless>; 2] {
        let places = Arc::new(Places::new(1));
        let held = places.take(Turn::Unknown, later(1)).await.unwrap();
        tokio::time::advance(SECOND).await;
        drop(held);
        let held = places.take(Turn::Unknown, later(9)).await.unwrap();
        let waits = left.map(|left| {
            let (places, deadline) = (Arc::clone(&places), later(1) + SECOND / 10 * left);
            tokio::spawn(async move {
                let place = places.take(Turn::Unknown, deadline).await;
                place.map(|_place| Instant::now())
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
        // There is room in the queue for both, but when it is his turn the first has no time left.
        let [first, second] = after_one_of_a_second([9, 20]).await;
        assert_eq!(first, Err(Hopeless));
        assert_eq!(second, Ok(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hung_keeps_nobody_from_waiting() {
        let places = Arc::new(Places::new(1));
        let mut held = places.take(Turn::Unknown, later(30)).await.unwrap();
        for seconds in [1, 1, 1, 1, 30] {
            tokio::time::advance(SECOND * seconds).await;
            drop(held);
            held = places.take(Turn::Unknown, later(30)).await.unwrap();
        }
        let waits = queued_until(&places, Turn::Unknown, later(30)).await;
        tokio::time::advance(SECOND).await;
        drop(held);
        drop(waits.await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_time_to_wait_but_not_to_load_is_told_at_once() {
        let places = Arc::new(Places::new(1));
        let held = places.take(Turn::Unknown, later(1)).await.unwrap();
        tokio::time::advance(SECOND * 2).await;
        drop(held);
        let held = places.take(Turn::Unknown, later(9)).await.unwrap();
        let waits = queued(&places, Turn::Unknown).await;
        let begun = Instant::now();
        // One round of two seconds before his own.
        let late = places.take(Turn::Unknown, later(3)).await;
        assert_eq!(late.unwrap_err(), Hopeless);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop(held);
        drop(waits.await.unwrap().unwrap());
        assert_eq!(places.queue.lock().free, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_come_too_late_is_told_at_once() {
        let places = Arc::new(Places::new(2));
        let held = [
            places.take(Turn::Unknown, later(1)).await.unwrap(),
            places.take(Turn::Unknown, later(1)).await.unwrap(),
        ];
        // Nothing is known of how long it takes: everybody may hope, until his time is up.
        let begun = Instant::now();
        assert_eq!(
            places.take(Turn::Unknown, later(1)).await.unwrap_err(),
            Hopeless
        );
        assert_eq!(begun.elapsed(), SECOND);
        tokio::time::advance(SECOND).await;
        drop(held);
        let held = [
            places.take(Turn::Unknown, later(1)).await.unwrap(),
            places.take(Turn::Unknown, later(1)).await.unwrap(),
        ];
        let mut waiting = Vec::new();
        for _ in 0..6 {
            waiting.push(queued(&places, Turn::Unknown).await);
        }
        let begun = Instant::now();
        // Three rounds of two seconds before it.
        assert_eq!(
            places.take(Turn::Unknown, later(5)).await.unwrap_err(),
            Hopeless
        );
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let known = queued(&places, Turn::Known).await;
        drop(held);
        drop(known.await.unwrap().unwrap());
        for waits in waiting {
            drop(waits.await.unwrap().unwrap());
        }
        assert_eq!(places.queue.lock().free, 2);
    }
}
