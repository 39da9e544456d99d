//! The fred client of the limits and of the tiers of ours.

use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::config::{Config, ReconnectPolicy};
use fred::types::{Builder, Expiration};

use crate::peer::{BoxError, TTL};
use crate::source::{CachedUser, decode, encode};

/// A client with a timeout that reconnects for ever. fred's own defaults wait without an end.
pub(crate) async fn connect(url: &str) -> Result<Client, BoxError> {
    let mut builder = Builder::from_config(Config::from_url(url)?);
    builder.with_performance_config(|config| {
        config.default_command_timeout = Duration::from_millis(500);
    });
    builder.set_policy(ReconnectPolicy::new_exponential(0, 100, 2_000, 2));
    let client = builder.build()?;
    client.init().await?;
    Ok(client)
}

/// `GET` and decode.
pub(crate) async fn read(client: &Client, key: String) -> Result<Option<CachedUser>, BoxError> {
    let bytes: Option<Bytes> = client.get(key).await?;
    Ok(bytes.and_then(|bytes| decode(&bytes)))
}

/// Encode and `SET`.
pub(crate) async fn write(
    client: &Client,
    key: String,
    cached: &CachedUser,
) -> Result<(), BoxError> {
    let bytes = Bytes::from(encode(cached)?);
    let ttl = i64::try_from(TTL.as_millis()).unwrap_or(i64::MAX);
    let expire = Some(Expiration::PX(ttl));
    client
        .set::<(), _, _>(key, bytes, expire, None, false)
        .await?;
    Ok(())
}
