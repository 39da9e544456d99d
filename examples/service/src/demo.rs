//! `--demo`: the live page, its stream, its buttons, and the load. None of it belongs into a service.

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
use crate::{Shop, until};

const SLOW: Duration = Duration::from_millis(400);

#[derive(Clone, Debug)]
struct Stage {
    shop: Arc<Shop>,
    live: Arc<Live>,
    stopped: watch::Receiver<bool>,
    /// What a query usually takes longer.
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
    let stage = Stage {
        shop: Arc::clone(shop),
        live,
        stopped: stopped.clone(),
        delay: settings.query_delay,
    };
    let router = Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/live", get(follow))
        .route("/demo/{action}", post(act))
        .with_state(stage);
    (router, tasks)
}

async fn follow(State(stage): State<Stage>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (history, samples) = stage.live.follow();
    let stream = stream::unfold(
        (history, samples, stage.stopped),
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

/// `None`: the service ends, and does not wait for pages that are open.
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
            () = until(stopped.clone()) => return None,
        };
        match sample {
            Ok(sample) => return Some(sample),
            // A page that is too slow has a hole in its lines.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

/// The field is one that a page of another site cannot send.
async fn act(
    State(stage): State<Stage>,
    Path(action): Path<String>,
    headers: HeaderMap,
) -> impl IntoResponse {
    if !headers.contains_key("x-tidegate-demo") {
        return (
            StatusCode::FORBIDDEN,
            "the field x-tidegate-demo is missing".to_owned(),
        );
    }
    match stage.act(&action).await {
        Ok(Some(said)) => {
            stage.shop.events.done(said.clone());
            (StatusCode::OK, said)
        }
        Ok(None) => (StatusCode::NOT_FOUND, format!("{action}: no such button")),
        Err(error) => (StatusCode::CONFLICT, error),
    }
}

impl Stage {
    async fn act(&self, action: &str) -> Result<Option<String>, String> {
        let shop = &self.shop;
        let server = || {
            let server = shop.tier.server();
            server.ok_or_else(|| "the server is not this process's own".to_owned())
        };
        let said = match action {
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
        Ok(Some(said))
    }
}
