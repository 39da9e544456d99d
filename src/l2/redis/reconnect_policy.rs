//! The reconnect policy: when a lost connection is made again.

use std::time::Duration;

use fred::types::config::ReconnectPolicy;

use crate::random;

/// Attempts go on for ever: soon at first, about once a second in the end.
///
/// A fleet that loses its server at one moment must not come back at one moment. fred adds its
/// jitter to a pause *before* it limits the pause, so the longest pause is the same for all.
/// Therefore each connection draws its first pause and its longest at random.
pub(super) fn reconnect_policy() -> ReconnectPolicy {
    let ms = |least, most| {
        let drawn = random::duration(Duration::from_millis(least), Duration::from_millis(most));
        u32::try_from(drawn.as_millis()).unwrap_or(u32::MAX)
    };
    let mut policy = ReconnectPolicy::new_exponential(0, ms(4, 9), ms(500, 1001), 2);
    policy.set_jitter(20);
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_loses_its_server_at_one_moment_does_not_come_back_as_one() {
        const PROCESSES: usize = 200;
        // When each process tries first after a server was away for this long.
        for outage in [2_500, 10_000, 60_000] {
            let mut tries: Vec<u64> = (0..PROCESSES).map(|_| first_after(outage)).collect();
            tries.sort_unstable();
            // They are spread over the second that follows: about 30 in a tenth of it.
            let most = tries
                .iter()
                .map(|first| {
                    tries
                        .iter()
                        .filter(|at| (*first..first + 100).contains(at))
                        .count()
                })
                .max();
            assert!(
                most.is_some_and(|most| most < PROCESSES / 2),
                "{most:?} at once"
            );
            assert!(tries.last().is_some_and(|last| last - outage <= 1_000));
        }
    }

    fn first_after(outage: u64) -> u64 {
        let (mut policy, mut at) = (reconnect_policy(), 0);
        while at < outage {
            at += policy.next_delay().unwrap_or(outage);
        }
        at
    }

    #[test]
    fn the_first_attempts_come_soon() {
        for _ in 0..100 {
            let mut policy = reconnect_policy();
            let first: u64 = (0..4).filter_map(|_| policy.next_delay()).sum();
            assert!(first < 250, "{first} ms");
        }
    }
}
