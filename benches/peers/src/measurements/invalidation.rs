//! What is read after an invalidation.

use std::sync::Arc;
use std::time::Duration;

use super::{Participant, Scale, runtime};
use crate::contenders::caches;
use crate::peer::{BoxError, Instance};
use crate::source::Source;
use crate::table::Table;

/// What look-ups found after the source had changed and the key had been invalidated.
#[derive(Default)]
struct Findings {
    fresh: u32,
    stale: u32,
    failed: u32,
}

impl Findings {
    async fn look_up(&mut self, peer: &Instance, id: u64, revision: u64) {
        match peer.get(id).await {
            Ok(Some(user)) if user.revision >= revision => self.fresh += 1,
            Ok(Some(_)) => self.stale += 1,
            _ => self.failed += 1,
        }
    }

    fn text(&self) -> String {
        match (self.fresh, self.stale, self.failed) {
            (_, 0, 0) => "fresh".to_owned(),
            (0, _, 0) => "**stale**".to_owned(),
            (fresh, stale, failed) => format!("{fresh} fresh, {stale} stale, {failed} failed"),
        }
    }
}

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let rounds = scale.pick(10, 1);
    let runtime = runtime()?;
    let mut table = Table::new(
        "An invalidation, and what is read after it",
        "During a load of 100 ms that has read its value, the source changes and the key is invalidated. After the load, the \
        key is read again by the same instance, and by a new one that has only Redis to ask. Across instances: B has loaded the \
        key, A invalidates it, and B reads 300 ms later. 10 rounds. Where they differ, the cell tells how many. cached has no \
        L1 over its Redis that could be stale in B.",
        &[
            "",
            "during a load: the same instance",
            "during a load: a new instance",
            "B, 300 ms after A invalidated",
        ],
    );
    for participant in Participant::all(caches(), Source::new)? {
        let (mut same, mut new, mut other) = (
            Findings::default(),
            Findings::default(),
            Findings::default(),
        );
        runtime.block_on(async {
            let (a, b) = (participant.open().await?, participant.open().await?);
            // Time for the subscriptions to be made.
            tokio::time::sleep(Duration::from_millis(200)).await;
            for id in 0..rounds {
                during_a_load(&participant, &a, id, &mut same, &mut new).await?;
                b.get(1_000 + id).await?;
                let revision = participant.source.changes();
                a.invalidate(1_000 + id).await?;
                tokio::time::sleep(Duration::from_millis(300)).await;
                other.look_up(&b, 1_000 + id, revision).await;
            }
            a.close().await;
            b.close().await;
            Ok::<_, BoxError>(())
        })?;
        table.row(vec![
            participant.who.name.to_owned(),
            same.text(),
            new.text(),
            other.text(),
        ]);
    }
    Ok(vec![table])
}

async fn during_a_load(
    participant: &Participant,
    peer: &Instance,
    id: u64,
    same: &mut Findings,
    new: &mut Findings,
) -> Result<(), BoxError> {
    let (source, before) = (participant.source, participant.source.loads());
    source.takes(Duration::from_millis(100));
    let load = tokio::spawn({
        let peer = Arc::clone(peer);
        async move { peer.get(id).await.map(drop) }
    });
    while source.loads() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let revision = source.changes();
    peer.invalidate(id).await?;
    load.await??;
    source.takes(Duration::ZERO);
    // The new instance looks first: the other one would load the key into Redis.
    let third = participant.open().await?;
    new.look_up(&third, id, revision).await;
    third.close().await;
    same.look_up(peer, id, revision).await;
    Ok(())
}
