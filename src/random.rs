//! The source of random numbers. There is one, so that a simulation can be repeated with its seed.

use std::time::Duration;

#[cfg(test)]
thread_local! {
    static SEEDED: std::cell::RefCell<Option<rand::rngs::StdRng>> = const { std::cell::RefCell::new(None) };
}

/// From now on everything that this thread draws follows from the seed.
#[cfg(all(test, feature = "bincode"))]
pub(crate) fn seed(seed: u64) {
    use rand::SeedableRng;
    SEEDED.set(Some(rand::rngs::StdRng::seed_from_u64(seed)));
}

fn draw<T>(from: impl FnOnce(&mut dyn rand::Rng) -> T) -> T {
    #[cfg(test)]
    return SEEDED.with_borrow_mut(|seeded| match seeded {
        Some(seeded) => from(seeded),
        None => from(&mut rand::rng()),
    });
    #[cfg(not(test))]
    from(&mut rand::rng())
}

/// 16 random bytes: a token, a nonce or a name that no other process has.
pub(crate) fn bytes() -> [u8; 16] {
    draw(|rng| {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        bytes
    })
}

/// A random number of 64 bits.
pub(crate) fn number() -> u64 {
    draw(|rng| rng.next_u64())
}

/// A random number from 0 to below 1.
pub(crate) fn share() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what an f64 holds")]
    let share = (number() >> 11) as f64 / (1_u64 << 53) as f64;
    share
}

/// A random duration from `least` to below `most`.
pub(crate) fn duration(least: Duration, most: Duration) -> Duration {
    least + most.saturating_sub(least).mul_f64(share())
}
