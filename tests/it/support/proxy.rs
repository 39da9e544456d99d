//! A TCP proxy between cache and server that a test can disturb.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::eventually;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyMode {
    /// Everything passes.
    Pass,
    /// Every connection is closed at once.
    Refuse,
    /// Connections stay open and nothing passes.
    BlackHole,
    /// Each connection is closed in the middle of a reply, after this many replies.
    CutMidReply(usize),
    /// Connections that are open already go silent and are not closed. New ones pass.
    DeadConnections,
    /// Each round trip takes this much longer.
    Slow(Duration),
    /// A connection that sends this word stops there until the mode changes. Other connections
    /// pass.
    Hold(&'static str),
    /// Client and server alternate: the replies to what the client has sent pass when this mode is
    /// set again with another number, until the client sends more.
    Lockstep(u64),
    /// Connections with a subscription do not receive the error of a missing right.
    HideDenials,
    /// Connections with a subscription stay open and deliver nothing. Others pass, and so do later
    /// subscriptions.
    DeadSubscriptions,
}

/// A proxy to a server's port. Its mode can be changed at any time.
pub(crate) struct Proxy {
    port: u16,
    mode: Arc<watch::Sender<ProxyMode>>,
    /// Counts up when all connections are to end.
    cuts: Arc<watch::Sender<u64>>,
    /// Each open connection holds a clone.
    open: Arc<()>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (mode, cuts) = (
            Arc::new(watch::Sender::new(ProxyMode::Pass)),
            Arc::new(watch::Sender::new(0)),
        );
        let open = Arc::new(());
        let accepting = tokio::spawn(accept(
            listener,
            server,
            Arc::clone(&mode),
            Arc::clone(&cuts),
            Arc::clone(&open),
        ));
        Self {
            port,
            mode,
            cuts,
            open,
            accepting,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Sets the mode. Bytes that a black hole took are lost, so its connections are closed at its
    /// end.
    pub(crate) async fn set(&self, mode: ProxyMode) {
        let before = self.mode.send_replace(mode);
        if before == ProxyMode::BlackHole || mode == ProxyMode::Refuse {
            self.cut();
        }
        if mode == ProxyMode::Refuse {
            // No command that is on its way may arrive after this returns.
            eventually("no connection stands", async || {
                // One reference is ours, one the accepting task's.
                Arc::strong_count(&self.open) == 2
            })
            .await;
        }
    }

    /// Closes the connections that are open.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    server: u16,
    mode: Arc<watch::Sender<ProxyMode>>,
    cuts: Arc<watch::Sender<u64>>,
    open: Arc<()>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (mut cut, counted) = (cuts.subscribe(), Arc::clone(&open));
        if *mode.borrow() == ProxyMode::Refuse {
            continue;
        }
        let Ok(upstream) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
            continue;
        };
        let (up, down) = (upstream.into_split(), client.into_split());
        let mode_at_start = *mode.borrow();
        let subscribed = Arc::new(AtomicBool::new(false));
        let also = Arc::clone(&subscribed);
        let client_sent = Arc::new(AtomicBool::new(false));
        let (to_server, to_client) = (
            Direction::ToServer(Arc::clone(&client_sent)),
            Direction::ToClient(client_sent),
        );
        let (there, back) = (
            relay(
                down.0,
                up.1,
                mode.subscribe(),
                mode_at_start,
                also,
                to_server,
            ),
            relay(
                up.0,
                down.1,
                mode.subscribe(),
                mode_at_start,
                subscribed,
                to_client,
            ),
        );
        tokio::spawn(async move {
            let _stands = counted;
            tokio::select! {
                () = there => {}
                () = back => {}
                _ = cut.changed() => {}
            }
        });
    }
}

/// The direction of the bytes, and whether the client has sent something since the last turn.
enum Direction {
    ToServer(Arc<AtomicBool>),
    ToClient(Arc<AtomicBool>),
}

/// Relays one direction of one connection.
async fn relay(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<ProxyMode>,
    mode_at_start: ProxyMode,
    subscribed: Arc<AtomicBool>,
    direction: Direction,
) {
    let mut bytes = vec![0; 1 << 16];
    let mut replies = 0;
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let now = *mode.borrow();
        if now != ProxyMode::DeadSubscriptions && contains_word(&bytes[..read], "SUBSCRIBE") {
            subscribed.store(true, Ordering::SeqCst);
        }
        match now {
            ProxyMode::BlackHole => continue,
            ProxyMode::DeadConnections if mode_at_start != ProxyMode::DeadConnections => continue,
            ProxyMode::CutMidReply(after) if matches!(direction, Direction::ToClient(_)) => {
                replies += 1;
                if replies > after {
                    let _ = to.write_all(&bytes[..read / 2]).await;
                    return;
                }
            }
            ProxyMode::HideDenials if subscribed.load(Ordering::SeqCst) => {
                let mut rest = bytes[..read].to_vec();
                hide_denials(&mut rest);
                if to.write_all(&rest).await.is_err() {
                    return;
                }
                continue;
            }
            ProxyMode::Slow(by) => tokio::time::sleep(by / 2).await,
            ProxyMode::Hold(word) if contains_word(&bytes[..read], word) => {
                let _ = mode.wait_for(|mode| *mode != now).await;
            }
            ProxyMode::Lockstep(_) => match &direction {
                Direction::ToServer(client_sent) => client_sent.store(true, Ordering::SeqCst),
                Direction::ToClient(client_sent) => {
                    if client_sent.load(Ordering::SeqCst) {
                        let _ = mode.wait_for(|mode| *mode != now).await;
                        client_sent.store(false, Ordering::SeqCst);
                    }
                }
            },
            ProxyMode::DeadSubscriptions if subscribed.load(Ordering::SeqCst) => continue,
            ProxyMode::Hold(_)
            | ProxyMode::HideDenials
            | ProxyMode::DeadSubscriptions
            | ProxyMode::DeadConnections => {}
            ProxyMode::Pass | ProxyMode::Refuse | ProxyMode::CutMidReply(_) => {}
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

fn hide_denials(bytes: &mut Vec<u8>) {
    let denial = b"-NOPERM";
    while let Some(at) = bytes.windows(denial.len()).position(|word| word == denial) {
        let end = bytes[at..].iter().position(|byte| *byte == b'\n');
        bytes.drain(at..end.map_or(bytes.len(), |end| at + end + 1));
    }
}

fn contains_word(bytes: &[u8], word: &str) -> bool {
    let mut windows = bytes.windows(word.len());
    windows.any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}
