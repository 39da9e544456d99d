//! The state that all clones of a handle share: clients, listeners, breaker, clock, tasks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, Pool, WithOptions};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Options};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::acl::denials::Acl;
use super::breaker::BreakerState;
use super::bus_connections::{BusConnections, Inbox, Subscriber};
use super::clock::Clock;
use super::errors::is_no_answer;
use super::mget_batcher::MgetBatcher;
use crate::error::{RemoteError, RemoteKind};
use crate::l2::listener::Listener;

pub(super) struct Shared {
    pub(super) prefix: String,
    pub(super) options: Options,
    pub(super) timeout: Duration,
    pub(super) pool: Pool,
    /// Whether this handle connects the pool and closes it.
    pub(super) owns_pool: bool,
    /// The client of the bus, if there is one server. In a cluster only its configuration is used.
    pub(super) bus: Client,
    pub(super) clustered: bool,
    pub(super) bus_connections: Mutex<BusConnections>,
    pub(super) clock: Clock,
    pub(super) breaker: BreakerState,
    pub(super) mget: MgetBatcher,
    pub(super) acl: Acl,
    pub(super) started: OnceLock<Instant>,
    /// The first attempt to connect has succeeded or failed.
    pub(super) first_attempt_ended: AtomicBool,
    pub(super) first_attempt_notify: Notify,
    pub(super) listeners: Mutex<HashMap<Bytes, Vec<Subscriber>>>,
    /// The id and the inbox of the only connection of the bus, until its task runs.
    pub(super) inbox: Mutex<Option<(u64, Inbox)>>,
    pub(super) tasks: Mutex<Vec<AbortHandle>>,
}

impl Shared {
    /// The configuration, as the user gave it.
    pub(super) fn config(&self) -> Config {
        self.pool.next().client_config()
    }

    pub(super) fn client(&self) -> WithOptions<Client> {
        self.pool.next_connected().with_options(&self.options)
    }

    /// Whether a command may be sent: not while the breaker is open.
    pub(super) fn admit(&self, operation: &'static str) -> Result<(), RemoteError> {
        if self.breaker.is_open() {
            let cause = "the breaker is open: the server has not answered of late";
            let kind = RemoteKind::Unreachable;
            return Err(RemoteError::because(kind, operation, cause));
        }
        Ok(())
    }

    /// Counts the result of a command.
    pub(super) fn report_to_breaker<T>(&self, result: &Result<T, RemoteError>) {
        let error = result.as_ref().err();
        let answered = error.is_none_or(|error| !is_no_answer(error));
        if self.breaker.record(answered, Instant::now()) {
            self.notify_breaker(true);
        }
    }

    pub(super) fn notify_breaker(&self, open: bool) {
        for listener in self.all_listeners() {
            listener.on_breaker(open);
        }
    }

    pub(super) fn notify_denied(&self, denied: bool) {
        for listener in self.all_listeners() {
            listener.on_denied(denied);
        }
    }

    pub(super) fn all_listeners(&self) -> Vec<Arc<dyn Listener>> {
        self.listeners
            .lock()
            .values()
            .flatten()
            .filter_map(|one| one.listener.upgrade())
            .collect()
    }

    /// Makes the connections for commands anew.
    pub(super) async fn reconnect(&self) {
        if self.owns_pool {
            // fred answers when the new connection stands, which may never be.
            let again = self.pool.force_reconnection();
            let _ = tokio::time::timeout(self.timeout, again).await;
        }
    }

    /// The first attempt to connect has succeeded or failed.
    pub(super) fn end_first_attempt(&self) {
        self.first_attempt_ended.store(true, Ordering::SeqCst);
        self.first_attempt_notify.notify_waiters();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().drain(..) {
            task.abort();
        }
        let clients = self.bus_connections.get_mut().take();
        // fred's own tasks outlive its handles; `quit` ends them.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let pool = self.owns_pool.then(|| self.pool.clone());
            runtime.spawn(async move {
                for client in clients {
                    let _ = client.quit().await;
                }
                if let Some(pool) = pool {
                    let _ = pool.quit().await;
                }
            });
        }
    }
}
