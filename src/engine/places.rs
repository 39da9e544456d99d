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
//! keep. Whoever would not get a place before his time is up is told so at once, and does not make the
//! queue longer for others. (Bronson et al., "Metastable Failures in Distributed Systems", HotOS 2021.)

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
    known: VecDeque<oneshot::Sender<Place>>,
    unknown: VecDeque<oneshot::Sender<Place>>,
    /// How long a place is held, on an average that forgets.
    held_for: Option<Duration>,
}

/// A place that is held; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    since: Instant,
}

/// The queue is so long that there is no place in time.
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
            queue.of(turn).push_back(place);
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
    fn of(&mut self, turn: Turn) -> &mut VecDeque<oneshot::Sender<Place>> {
        match turn {
            Turn::Known => &mut self.known,
            Turn::Unknown => &mut self.unknown,
        }
    }

    /// How long whoever comes now would wait, if those before him take as long as others did.
    fn wait(&self, turn: Turn, places: usize) -> Option<Duration> {
        let before = match turn {
            Turn::Known => self.known.len(),
            Turn::Unknown => self.known.len() + self.unknown.len(),
        };
        let held_for = self.held_for?;
        let rounds = u32::try_from(before / places.max(1)).unwrap_or(u32::MAX);
        Some(held_for.saturating_mul(rounds))
    }

    /// Those whose callers have gone are at no place of the queue.
    fn forget_gone(&mut self) {
        for queue in [&mut self.known, &mut self.unknown] {
            // Only at the front, where they are when their time is up: each is looked at once.
            while queue.front().is_some_and(oneshot::Sender::is_closed) {
                queue.pop_front();
            }
        }
    }

    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        self.forget_gone();
        self.known.pop_front().or_else(|| self.unknown.pop_front())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        let next = {
            let mut queue = self.places.queue.lock();
            let held = now.saturating_duration_since(self.since);
            if !held.is_zero() {
                queue.held_for = Some(queue.held_for.map_or(held, |mean| mean / 8 * 7 + held / 8));
            }
            let next = queue.next();
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
        let (waiting, mine) = (places.waiting(), Arc::clone(places));
        let task = tokio::spawn(async move { mine.take(turn, later(100)).await });
        while places.waiting() == waiting {
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
