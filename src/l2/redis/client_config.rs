//! How fred's clients are configured.
//!
//! fred's defaults do not suit a cache. Every command is sent with `fail_fast`: it fails at once
//! without a connection; the default would queue it. The timeout is fred's own: tokio's would
//! drop the future and leave the command in fred's queue, to be carried out minutes later. There is
//! one attempt, because a retry may carry out a command twice.

use std::time::Duration;

use fred::clients::Client;
use fred::types::config::{ConnectionConfig, Options, PerformanceConfig, TcpConfig};
use fred::types::{Builder, RespVersion};

use super::credentials;
use super::reconnect_policy::reconnect_policy;

/// The number of messages that may wait to be processed before one is lost. A loss is noticed, and
/// costs a read of L2 for every entry. fred's default of 32 is one burst of an `invalidate_many`.
const BUS_CAPACITY: usize = 8192;

/// The options of every command.
pub(super) fn command_options(timeout: Duration) -> Options {
    Options {
        // A command that was lost with its connection is not sent again.
        max_attempts: Some(1),
        timeout: Some(timeout),
        fail_fast: true,
        ..Options::default()
    }
}

/// The configuration of every connection.
pub(super) fn connection(connect_timeout: Duration) -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: connect_timeout,
        internal_command_timeout: connect_timeout,
        max_command_attempts: 1,
        // No redirection is followed: see `Redis::send`.
        max_redirections: 0,
        reconnect_on_auth_error: true,
        tcp: TcpConfig {
            nodelay: Some(true),
            ..TcpConfig::default()
        },
        ..ConnectionConfig::default()
    }
}

/// A client for the bus. It is not the one for commands, because a refused `SUBSCRIBE` shifts the
/// replies of its connection. It speaks RESP3, in which commands work on a subscribed connection.
pub(super) fn bus_client(mut builder: Builder, fail_fast: bool) -> Client {
    builder.set_policy(reconnect_policy());
    builder.with_config(|config| {
        config.fail_fast = fail_fast;
        config.version = RespVersion::RESP3;
        credentials::quote(config);
    });
    builder.set_performance_config(PerformanceConfig {
        broadcast_channel_capacity: BUS_CAPACITY,
        ..PerformanceConfig::default()
    });
    // It fails only without a configuration.
    builder.build().unwrap_or_default()
}
