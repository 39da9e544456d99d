//! `invalidate`: through a cache of the same name, so that every process is told, and what was loaded
//! before is never stored.

use std::time::Duration;

use serde_json::json;
use tidegate::inspect::{EncodedKey, Names};
use tidegate::{BoxError, Cache, Loaded, Redis, loader_fn};

use crate::args::{Invalidate, Target};
use crate::connection::Connection;
use crate::error::Failure;
use crate::print::Report;

pub(crate) async fn invalidate(
    connection: &Connection,
    target: &Target,
    cache: &str,
    keys: Vec<EncodedKey>,
    what: &Invalidate,
) -> Result<Report, Failure> {
    // Before there is one more of them.
    let listeners = connection
        .listeners(&Names::new(&target.prefix, cache))
        .await?;
    let cache = open(target, cache, what.hold_off()).await?;
    let done = apply(&cache, &keys, what).await;
    cache.close().await;
    done?;
    let keys: Vec<&str> = keys.iter().map(EncodedKey::as_str).collect();
    let mut done: Vec<String> = keys.iter().map(|key| format!("key {key}")).collect();
    done.extend(what.tag.iter().map(|tag| format!("tag {tag}")));
    if what.everything {
        done.push("everything".to_owned());
    }
    let heard = match listeners {
        Some(1) => "; 1 process listens".to_owned(),
        Some(listeners) => format!("; {listeners} processes listen"),
        None => String::new(),
    };
    let text = format!("invalidated: {}{heard}\n", done.join(", "));
    let json = json!({
        "keys": keys,
        "tags": what.tag,
        "everything": what.everything,
        "listeners": listeners,
    });
    Ok(Report::new(json, text))
}

/// A cache that never loads.
async fn open(
    target: &Target,
    name: &str,
    hold_off: Duration,
) -> Result<Cache<EncodedKey, (), BoxError>, Failure> {
    let redis = Redis::builder(&target.url)
        .prefix(&target.prefix)
        .timeout(target.timeout())
        .connect_timeout(target.timeout());
    let never = loader_fn(|_: EncodedKey| async { Ok::<_, BoxError>(Loaded::missing()) });
    let cache = Cache::builder(name, never)
        .l2(redis.connect().await?)
        .hold_off(hold_off);
    Ok(cache.build()?)
}

async fn apply(
    cache: &Cache<EncodedKey, (), BoxError>,
    keys: &[EncodedKey],
    what: &Invalidate,
) -> Result<(), Failure> {
    cache.invalidate_many(keys).await?;
    for tag in &what.tag {
        cache.invalidate_tag(tag).await?;
    }
    if what.everything {
        cache.invalidate_all().await?;
    }
    Ok(())
}
