//! The child's side of [`fleet::Worker`](crate::fleet::Worker): the work of a real process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::{BoxError, Redis};
use tokio::sync::mpsc;

use crate::database::Database;
use crate::fleet::connections;
use crate::kv::Kv;
use crate::node::{Node, Strategy, Tier};
use crate::options::Work;
use crate::redis;
use crate::traffic;

pub(crate) async fn work(work: Work) -> Result<(), BoxError> {
    let Work {
        index,
        job,
        database,
        url,
    } = work;
    let database =
        Database::open(Path::new(&database), connections(job.processes)).map_err(BoxError::new)?;
    let tier = match job.strategy {
        Strategy::NoCache => Tier::None,
        Strategy::CacheAside | Strategy::Lock => Tier::Kv(Kv::Redis(redis::connect(&url).await?)),
        Strategy::Tidegate => Tier::Redis(Redis::connect(&url).await.map_err(BoxError::new)?),
    };
    let node = Arc::new(Node::new(
        job.strategy,
        tier,
        database,
        &job.name,
        job.phase.ttl(),
    )?);

    let mut orders = orders();
    println!("ready");
    loop {
        match orders.recv().await.as_deref() {
            Some("fill") => {
                node.answer().await?;
                println!("filled");
            }
            Some("go") => break,
            Some(other) => return Err(format!("there is no order {other:?}").into()),
            None => return Ok(()),
        }
    }

    let answered = Arc::new(AtomicUsize::new(0));
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut sending = tokio::spawn(traffic::send(node, job, index, Arc::clone(&answered)));
    let outcome = loop {
        tokio::select! {
            ended = &mut sending => break ended.map_err(BoxError::new)??,
            _ = ticks.tick() => println!("answered {}", answered.load(Ordering::Relaxed)),
            order = orders.recv() => {
                if order.is_none() {
                    return Err("the parent process is gone".into());
                }
            }
        }
    };
    println!("queries {}", outcome.queries);
    let latencies: Vec<String> = outcome.latencies.iter().map(u64::to_string).collect();
    println!("latencies {}", latencies.join(" "));
    Ok(())
}

/// The lines of stdin, closed when the parent closes it or ends. They are read by a thread, because
/// tokio's stdin would keep the runtime from ending.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
