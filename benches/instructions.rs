//! The program that `tests/instructions` counts: look-ups of one kind, and no other work that grows
//! with their number.
//!
//! ```text
//! cargo bench --bench instructions -- hit 100000
//! ```

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tidegate::{BoxError, Cache, CacheBuilder, InProcess, Loader, loader_fn};

const KEYS: u64 = 8_192;

type Numbers = Cache<u64, u64, BoxError>;

fn builder() -> CacheBuilder<impl Loader<Key = u64, Value = u64, Error = BoxError> + use<>> {
    let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>((id < KEYS).then_some(id)) });
    Cache::builder("numbers", load)
        .ttl(Duration::from_secs(3_600))
        .negative_ttl(Duration::from_secs(3_600))
        // Under an emulator, timers end late.
        .channel_lease(Duration::from_secs(3_600))
        .l2(InProcess::new())
}

/// Looks the keys up in turn, each of them once before the counted look-ups.
async fn look_ups(cache: &Numbers, keys: std::ops::Range<u64>, times: u64) -> Result<(), BoxError> {
    let count = keys.end - keys.start;
    // Meanwhile a single key moves into the hot slots in front of moka.
    for at in 0..count.max(1_000) {
        let got = cache.get(&(keys.start + at % count)).await;
        got.map_err(BoxError::new)?;
    }
    for at in 0..times {
        let got = cache.get(&(keys.start + at % count)).await;
        black_box(got.map_err(BoxError::new)?);
    }
    Ok(())
}

async fn run(what: &str, times: u64) -> Result<(), BoxError> {
    let cache = builder();
    let (cache, keys) = match what {
        "moka" => {
            let bare = moka::sync::Cache::new(10_000);
            bare.insert(1_u64, Arc::new(1_u64));
            for _ in 0..times {
                black_box(bare.get(&1));
            }
            return Ok(());
        }
        "hit" => (cache, 1..2),
        "absent" => (cache, KEYS..KEYS + 1),
        // More keys than the hot slots can hold.
        "behind" => (cache, 0..KEYS),
        "l2" => (cache.l1_capacity(0), 1..2),
        _ => return Err("moka, hit, absent, behind or l2".into()),
    };
    let cache = cache.build().map_err(BoxError::new)?;
    look_ups(&cache, keys, times).await
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let what = args.next().unwrap_or_default();
    let times = args.next().and_then(|times| times.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let ended = runtime
        .map_err(BoxError::new)
        .and_then(|runtime| match times {
            // Without a number, a few look-ups of each kind, to check that everything runs.
            None => ["moka", "hit", "absent", "behind", "l2"]
                .into_iter()
                .try_for_each(|what| runtime.block_on(run(what, 100))),
            Some(times) => runtime.block_on(run(&what, times)),
        });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}
