//! How a subscription is proven: a message on a channel that no other client knows.
//!
//! The server answers a refused `SUBSCRIBE` at a point where no caller waits for an answer. So a
//! reply proves nothing, but the number of receivers of a message does, and the message itself.

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Message, Value};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Why a connection does not receive its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscribeError {
    /// No answer, or no connection.
    NoAnswer,
    /// The answer belongs to another command.
    UnexpectedReply,
    Denied,
}

/// The name of a new channel, which no other client knows.
pub(super) fn probe_channel(prefix: &str) -> String {
    format!("{prefix}::beat:{:016x}", crate::random::number())
}

/// Waits for a message on a channel.
pub(super) async fn receives(messages: &mut Receiver<Message>, channel: &str) -> bool {
    loop {
        match messages.recv().await {
            Ok(message) if *message.channel == *channel => return true,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}

/// Publishes an empty message on a probe channel. Answers the number of its receivers.
pub(super) async fn publish_and_count(
    client: &WithOptions<Client>,
    channel: &[u8],
) -> Result<u64, FredError> {
    let command = CustomCommand::new_static("PUBLISH", ClusterHash::FirstKey, false);
    let args = vec![Bytes::copy_from_slice(channel), Bytes::new()];
    let reply: Value = client.custom(command, args).await?;
    match reply.as_u64() {
        Some(receivers) => Ok(receivers),
        None => Err(FredError::new(ErrorKind::Protocol, "unexpected reply")),
    }
}
