//! The command `invalidate`.
//!
//! It goes through a cache of the same name. So every process is notified, and no load that began
//! earlier stores its value.

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
    request: &Invalidate,
) -> Result<Report, Failure> {
    // Counted before this process adds a listener of its own.
    let listeners = connection
        .listeners(&Names::new(&target.prefix, cache))
        .await?;
    let cache = open(target, cache, request.hold_off()).await?;
    let applied = apply(&cache, &keys, request).await;
    cache.close().await;
    applied?;
    let keys: Vec<&str> = keys.iter().map(EncodedKey::as_str).collect();
    let mut done: Vec<String> = keys.iter().map(|key| format!("key {key}")).collect();
    done.extend(request.tag.iter().map(|tag| format!("tag {tag}")));
    if request.everything {
        done.push("everything".to_owned());
    }
    let listening = match listeners {
        Some(1) => "; 1 process listens".to_owned(),
        Some(listeners) => format!("; {listeners} processes listen"),
        None => String::new(),
    };
    let text = format!("invalidated: {}{listening}\n", done.join(", "));
    let json = json!({
        "keys": keys,
        "tags": request.tag,
        "everything": request.everything,
        "listeners": listeners,
    });
    Ok(Report::new(json, text))
}

/// Opens a cache for invalidations. Its loader is never called.
async fn open(
    target: &Target,
    name: &str,
    hold_off: Duration,
) -> Result<Cache<EncodedKey, (), BoxError>, Failure> {
    let redis = Redis::builder(&target.url)
        .prefix(&target.prefix)
        .timeout(target.timeout())
        .connect_timeout(target.timeout());
    let loader = loader_fn(|_: EncodedKey| async { Ok::<_, BoxError>(Loaded::missing()) });
    let cache = Cache::builder(name, loader)
        .l2(redis.connect().await?)
        .hold_off(hold_off);
    Ok(cache.build()?)
}

async fn apply(
    cache: &Cache<EncodedKey, (), BoxError>,
    keys: &[EncodedKey],
    request: &Invalidate,
) -> Result<(), Failure> {
    cache.invalidate_many(keys).await?;
    for tag in &request.tag {
        cache.invalidate_tag(tag).await?;
    }
    if request.everything {
        cache.invalidate_all().await?;
    }
    Ok(())
}
