//! Many keys in one call.

use std::ops::Range;
use std::time::Instant;

use super::{Participant, Scale, ask_all, runtime};
use crate::contenders::contenders_where;
use crate::peer::{BoxError, Instance};
use crate::source::Source;
use crate::table::{Table, Values, count, micros};

const KEYS: u64 = 100;

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let (rounds, calls) = (scale.pick(11, 1), scale.pick(100, 5));
    let runtime = runtime()?;
    let participants = Participant::all(
        contenders_where(|one| matches!(one.slug, "fred" | "tidegate" | "moka")),
        Source::new,
    )?;
    // The table needs these three rows, and `--only` may have left one of them out.
    let [moka, fred, tidegate] = &participants[..] else {
        return Ok(Vec::new());
    };
    let (fred_source, source) = (fred.source, tidegate.source);
    let calls_of = |round: u64| round * calls..(round + 1) * calls;
    let [mut limit, mut ours, mut l1_limit, mut l1] = [(); 4].map(|()| Values::default());
    runtime.block_on(async {
        let all: Vec<u64> = (0..rounds * calls * KEYS).collect();
        for participant in &participants {
            let mut setup = participant.setup();
            setup.capacity = 2 * all.len() as u64;
            let peer = participant.open_with(setup).await?;
            ask_all(&peer, &all, 64).await?;
            peer.close().await;
        }
        let mut setup = moka.setup();
        setup.capacity = 2 * all.len() as u64;
        let moka = moka.open_with(setup).await?;
        ask_all(&moka, &all, 1).await?;
        let fred = fred.open().await?;
        // This instance begins with an empty L1.
        let mut setup = tidegate.setup();
        setup.capacity = 2 * all.len() as u64;
        let peer = tidegate.open_with(setup).await?;
        ask_all(&peer, &[1 << 35], 1).await?;
        let before = (fred_source.loads(), source.loads());
        for round in 0..rounds {
            limit.push(calls_in_a_row(&fred, calls_of(round)).await?);
            ours.push(calls_in_a_row(&peer, calls_of(round)).await?);
            let begun = Instant::now();
            for call in calls_of(round) {
                for id in call * KEYS..(call + 1) * KEYS {
                    moka.get(id).await?;
                }
            }
            l1_limit.push(micros(begun.elapsed()) / count(calls));
            l1.push(calls_in_a_row(&peer, calls_of(round)).await?);
        }
        if (fred_source.loads(), source.loads()) != before {
            return Err("some were loaded".into());
        }
        peer.close().await;
        Ok::<_, BoxError>(())
    })?;
    let mut table = Table::new(
        "100 keys in one call",
        "One call of tidegate's `get_many` with values of about 100 bytes. From Redis, the limit is fred's MGET and decoding \
        alone. From L1, the limit is 100 calls of moka's `get`, each boxed as the others are. Medians and quartiles of 11 rounds \
        of 100 calls. No other cache here has such a call.",
        &[
            "",
            "limit, µs",
            "quartiles, µs",
            "tidegate, µs",
            "quartiles, µs",
            "multiple of the limit",
        ],
    );
    for (what, limit, ours) in [("from Redis", &limit, &ours), ("from L1", &l1_limit, &l1)] {
        let mut row = vec![what.to_owned()];
        row.extend(limit.spread());
        row.extend(ours.beside(limit));
        table.row(row);
    }
    Ok(vec![table])
}

/// Microseconds of each call.
async fn calls_in_a_row(peer: &Instance, calls: Range<u64>) -> Result<f64, BoxError> {
    let (begun, number) = (Instant::now(), calls.end - calls.start);
    for call in calls {
        let ids = (call * KEYS..(call + 1) * KEYS).collect();
        let many = peer.get_many(ids).ok_or("there is no such call")?;
        if many.await? as u64 != KEYS {
            return Err("some are not there".into());
        }
    }
    Ok(micros(begun.elapsed()) / count(number))
}
