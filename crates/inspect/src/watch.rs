//! The command `watch`: prints the messages of the invalidation bus as they arrive.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tidegate::fred::interfaces::{ClientLike as _, EventInterface as _, PubsubInterface as _};
use tidegate::fred::types::Message as Received;
use tidegate::inspect::{Message, Names, Operation};
use tokio::sync::broadcast::error::RecvError;

use crate::args::Target;
use crate::connection::{Connection, escape_glob};
use crate::error::Failure;
use crate::print;
use crate::view;

pub(crate) async fn watch(
    connection: &Connection,
    target: &Target,
    names: Option<&Names>,
    count: Option<u64>,
    seconds: Option<u64>,
) -> Result<(), Failure> {
    let client = &connection.client;
    let (mut messages, mut errors) = (client.message_rx(), client.error_rx());
    let channels = match names {
        Some(names) => {
            client.subscribe(names.bus()).await?;
            names.bus()
        }
        None => {
            let pattern = escape_glob(&target.prefix) + ":*::bus";
            client.psubscribe(pattern.as_str()).await?;
            pattern
        }
    };
    // fred does not wait for the reply to SUBSCRIBE. A reply to PING on the same connection follows
    // it.
    client.ping::<()>(None).await?;
    // This line tells people and scripts that no message is missed from here on.
    eprintln!("watching {channels}");

    let end = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        tokio::select! {
            received = messages.recv() => match received {
                Ok(received) => {
                    left -= 1;
                    print_message(&received, target);
                }
                Err(RecvError::Lagged(missed)) => {
                    eprintln!("{missed} messages came too fast and are not shown");
                }
                Err(RecvError::Closed) => return Err(connection_lost()),
            },
            _ = errors.recv() => return Err(connection_lost()),
            () = &mut end => return Ok(()),
        }
    }
    Ok(())
}

fn connection_lost() -> Failure {
    Failure::Redis("the connection is lost, and what is said meanwhile is not heard".to_owned())
}

fn print_message(received: &Received, target: &Target) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let at_ms = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let cache = cache_of(&received.channel, &target.prefix);
    let bytes = received.value.as_bytes().unwrap_or_default();
    let Some(message) = Message::parse(bytes) else {
        return if target.json {
            let json =
                json!({ "at_ms": at_ms, "cache": cache, "operation": null, "bytes": bytes.len() });
            print::write_stdout(&format!("{json}\n"));
        } else {
            let at = print::clock(at_ms);
            print::write_stdout(&format!(
                "{at}  {cache}  not understood, {} bytes\n",
                bytes.len()
            ));
        };
    };
    let operation = operation_name(message.operation);
    let keys: Vec<&str> = message.keys.iter().map(|key| key.as_str()).collect();
    let tag = message.tag.map(view::tag_hash_text);
    let origin = print::hex(&message.origin);
    if target.json {
        let marks = message
            .marks
            .map(|(era, mark, all)| json!({ "era": era, "mark": mark, "all": all }));
        let json = json!({
            "at_ms": at_ms,
            "cache": cache,
            "operation": operation,
            "origin": origin,
            "number": message.number,
            "keys": keys,
            "tag": tag,
            "marks": marks,
        });
        print::write_stdout(&format!("{json}\n"));
        return;
    }
    let about = match (tag, message.marks) {
        (Some(tag), Some((_, mark, _))) => format!("tag {tag}, mark {mark}"),
        (None, Some((_, mark, _))) => format!("mark {mark}"),
        _ => keys.join("  "),
    };
    let (at, sender) = (print::clock(at_ms), &origin[..8]);
    let number = message.number;
    print::write_stdout(&format!(
        "{at}  {cache}  {operation:14}  {sender} #{number:<5}  {about}\n"
    ));
}

/// The name of a channel's cache, in its form in keys.
fn cache_of<'a>(channel: &'a str, prefix: &str) -> &'a str {
    let name = channel.strip_prefix(prefix).unwrap_or(channel);
    let name = name.strip_prefix(':').unwrap_or(name);
    name.strip_suffix("::bus").unwrap_or(name)
}

fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Invalidate => "invalidate",
        Operation::Insert => "insert",
        Operation::Wake => "wake",
        Operation::Expire => "expire",
        Operation::Beat => "beat",
        Operation::InvalidateAll => "invalidate_all",
        Operation::InvalidateTag => "invalidate_tag",
        _ => "of a later version",
    }
}
