//! The demo mode (`--demo`): the live page, its event stream, its buttons and the load generator. A
//! real service has none of this.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse};
use axum::routing::{get, post};
use futures_util::{Stream, stream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::live::Live;
use crate::settings::{Demo, Settings};
use crate::traffic::{HOT, Traffic};
use crate::{Shop, until_stopped};

/// The delay of each query while the button "Slow database" is on.
const SLOW: Duration = Duration::from_millis(400);

/// The state of the demo's handlers.
#[derive(Clone, Debug)]
struct DemoState {
    shop: Arc<Shop>,
    live: Arc<Live>,
    stopped: watch::Receiver<bool>,
    /// The delay of each query while the button is off.
    delay: Duration,
}

pub(crate) fn start(
    demo: Demo,
    shop: &Arc<Shop>,
    address: SocketAddr,
    settings: &Settings,
    stopped: &watch::Receiver<bool>,
) -> (Router, Vec<JoinHandle<()>>) {
    let live = Arc::new(Live::new());
    let traffic = Arc::new(Traffic::new(address, demo));
    let tasks = vec![
        tokio::spawn(Arc::clone(&traffic).run()),
        tokio::spawn(Arc::clone(&live).run(Arc::clone(shop), traffic)),
    ];
    let state = DemoState {
        shop: Arc::clone(shop),
        live,
        stopped: stopped.clone(),
        delay: settings.query_delay,
    };
    let router = Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/live", get(stream_samples))
        .route("/demo/{action}", post(act))
        .with_state(state);
    (router, tasks)
}

async fn stream_samples(
    State(state): State<DemoState>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (history, samples) = state.live.subscribe();
    let stream = stream::unfold(
        (history, samples, state.stopped),
        |(mut history, mut samples, stopped)| async move {
            let sample = next(&mut history, &mut samples, &stopped).await?;
            Some((
                Ok(Event::default().data(&*sample)),
                (history, samples, stopped),
            ))
        },
    );
    Sse::new(stream).keep_alive(KeepAlive::default())
}

/// The next sample for a page. `None` when the service stops: it does not wait for open pages.
async fn next(
    history: &mut VecDeque<Arc<str>>,
    samples: &mut broadcast::Receiver<Arc<str>>,
    stopped: &watch::Receiver<bool>,
) -> Option<Arc<str>> {
    if let Some(sample) = history.pop_front() {
        return Some(sample);
    }
    loop {
        let sample = tokio::select! {
            sample = samples.recv() => sample,
            () = until_stopped(stopped.clone()) => return None,
        };
        match sample {
            Ok(sample) => return Some(sample),
            // A page that reads too slowly misses samples; its lines have a gap.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

/// Runs the action of a button. The required header field keeps other sites out: a browser does not
/// let their pages send it.
async fn act(
    State(state): State<DemoState>,
    Path(action): Path<String>,
    headers: HeaderMap,
) -> impl IntoResponse {
    if !headers.contains_key("x-tidegate-demo") {
        return (
            StatusCode::FORBIDDEN,
            "the field x-tidegate-demo is missing".to_owned(),
        );
    }
    match state.act(&action).await {
        Ok(Some(done)) => {
            state.shop.events.record_action(done.clone());
            (StatusCode::OK, done)
        }
        Ok(None) => (StatusCode::NOT_FOUND, format!("{action}: no such button")),
        Err(error) => (StatusCode::CONFLICT, error),
    }
}

impl DemoState {
    async fn act(&self, action: &str) -> Result<Option<String>, String> {
        let shop = &self.shop;
        let server = || {
            let server = shop.tier.server();
            server.ok_or_else(|| "the server is not this process's own".to_owned())
        };
        let done = match action {
            "expire-hot-key" => match shop.caches.users.expire(&HOT).await {
                Ok(()) => format!("users/{HOT} expired"),
                Err(_) => format!("users/{HOT} expired here; L2 did not confirm it"),
            },
            "invalidate-hot-key" => match shop.caches.users.invalidate(&HOT).await {
                Ok(()) => format!("users/{HOT} invalidated"),
                Err(_) => format!("users/{HOT} invalidated here; L2 did not confirm it"),
            },
            "kill-redis" => {
                server()?.kill().await.map_err(|error| error.to_string())?;
                "Redis killed (SIGKILL)".to_owned()
            }
            "start-redis" => {
                server()?
                    .restart()
                    .await
                    .map_err(|error| error.to_string())?;
                "Redis started, empty".to_owned()
            }
            "slow-database" => {
                shop.database.set_delay(SLOW);
                format!("each query takes {} ms longer", SLOW.as_millis())
            }
            "fast-database" => {
                shop.database.set_delay(self.delay);
                "the database is as fast as before".to_owned()
            }
            _ => return Ok(None),
        };
        Ok(Some(done))
    }
}
