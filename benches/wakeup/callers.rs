//! Many callers of one key, and when each of them was answered.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Builder;
use fred::types::config::Config;
use tidegate::{BoxError, Cache, Channel, Loaded, Loader, SharedTier};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

/// Nanoseconds on a clock that all processes of the machine share.
pub(crate) fn nanos() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// A loader that answers when the bench lets it.
#[derive(Clone, Debug)]
pub(crate) struct GatedLoader(Arc<Load>);

#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) begun: AtomicU64,
    go: Semaphore,
    /// When the last load returned.
    ended: AtomicU64,
}

impl Loader for GatedLoader {
    type Key = u64;
    type Value = u64;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<u64>, BoxError> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        self.0.go.acquire().await.map_err(BoxError::new)?.forget();
        self.0.ended.store(nanos(), Ordering::SeqCst);
        Ok(Loaded::found(*key))
    }
}

/// A cache whose loads return when the bench lets them.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) cache: Cache<u64, u64, BoxError>,
    pub(crate) load: Arc<Load>,
}

impl Node {
    pub(crate) async fn new(tier: impl SharedTier) -> Result<Self, BoxError> {
        let load = Arc::new(Load {
            begun: AtomicU64::new(0),
            go: Semaphore::new(1),
            ended: AtomicU64::new(0),
        });
        let cache = Cache::builder("numbers", GatedLoader(Arc::clone(&load)))
            .ttl(Duration::from_secs(600))
            .lease_ttl(Duration::from_secs(30))
            .lease_wait(Duration::from_secs(60))
            .l2(tier)
            .build()
            .map_err(BoxError::new)?;
        // A key of its own, so that the work of the first look-up is not measured.
        let own = u64::MAX - u64::from(std::process::id());
        cache.get(&own).await.map_err(BoxError::new)?;
        for _ in 0..1_000 {
            if cache.health().channel == Channel::Proven {
                return Ok(Self { cache, load });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err("the channel is not proven".into())
    }

    /// Callers of one key, all of which wait for it when this returns.
    pub(crate) async fn callers(&self, key: u64, many: u64) -> Vec<JoinHandle<u64>> {
        let call = || {
            let cache = self.cache.clone();
            async move {
                let answer = cache.get(&key).await;
                assert!(matches!(answer.as_ref().map(Option::as_deref), Ok(Some(_))));
            }
        };
        waiting(many, call).await
    }

    /// Lets the load return.
    pub(crate) fn go(&self) {
        self.load.go.add_permits(1);
    }

    pub(crate) fn ended(&self) -> u64 {
        self.load.ended.load(Ordering::SeqCst)
    }
}

/// Tasks that all wait when this returns. Each ends with the time at which its wait ended.
pub(crate) async fn waiting<F>(many: u64, wait: impl Fn() -> F) -> Vec<JoinHandle<u64>>
where
    F: Future<Output = ()> + Send + 'static,
{
    let ready = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..many {
        let (wait, ready) = (wait(), Arc::clone(&ready));
        tasks.push(tokio::spawn(async move {
            let (mut wait, mut announced) = (pin!(wait), false);
            poll_fn(|context| {
                let polled = wait.as_mut().poll(context);
                if polled.is_pending() && !announced {
                    announced = true;
                    ready.fetch_add(1, Ordering::SeqCst);
                }
                polled
            })
            .await;
            nanos()
        }));
    }
    until(|| ready.load(Ordering::SeqCst) == many).await;
    tasks
}

/// The limit: tasks that wait for a `Notify`.
pub(crate) async fn notified(notify: &Arc<Notify>, many: u64) -> Vec<JoinHandle<u64>> {
    let wait = || {
        let notify = Arc::clone(notify);
        async move { notify.notified().await }
    };
    waiting(many, wait).await
}

pub(crate) async fn times(tasks: Vec<JoinHandle<u64>>) -> Result<Vec<u64>, BoxError> {
    let mut times = Vec::new();
    for task in tasks {
        times.push(task.await.map_err(BoxError::new)?);
    }
    Ok(times)
}

pub(crate) async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// A bare client that is subscribed to one channel and notifies of each message.
pub(crate) struct Bare {
    pub(crate) client: Client,
    pub(crate) received: Arc<Notify>,
    _subscriber: Client,
}

const CHANNEL: &str = "bare";

impl Bare {
    pub(crate) async fn new(url: &str) -> Result<Self, BoxError> {
        let (client, subscriber) = (client(url).await?, client(url).await?);
        let received = Arc::new(Notify::new());
        let mut messages = subscriber.message_rx();
        tokio::spawn({
            let received = Arc::clone(&received);
            async move {
                while messages.recv().await.is_ok() {
                    received.notify_waiters();
                }
            }
        });
        subscriber.subscribe(CHANNEL).await.map_err(BoxError::new)?;
        // fred returns before the server has confirmed the subscription.
        let ready = subscriber.ping::<fred::types::Value>(None).await;
        ready.map_err(BoxError::new)?;
        Ok(Self {
            client,
            received,
            _subscriber: subscriber,
        })
    }

    /// Publishes a message and returns the time before it.
    pub(crate) async fn publish(&self) -> Result<u64, BoxError> {
        let sent = nanos();
        let announced = self.client.publish::<u64, _, _>(CHANNEL, "x").await;
        announced.map(|_| sent).map_err(BoxError::new)
    }
}

async fn client(url: &str) -> Result<Client, BoxError> {
    let config = Config::from_url(url).map_err(BoxError::new)?;
    let client = Builder::from_config(config).build();
    let client = client.map_err(BoxError::new)?;
    client.init().await.map_err(BoxError::new)?;
    Ok(client)
}
