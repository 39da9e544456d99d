//! A wire between cache and server that a test can break.

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
    /// What goes in comes out.
    Pass,
    /// Every connection is ended at once.
    Refuse,
    /// Connections stand, and nothing comes out of them.
    BlackHole,
    /// Connections are ended in the middle of what the server says, each after so many replies.
    CutMidReply(usize),
    /// The connections that stand say nothing any more, and nobody ends them; new ones pass.
    DeadConnections,
    /// Everything takes this long.
    Slow(Duration),
    /// A connection that sends this word stops there; the others pass. It goes on when this ends.
    Hold(&'static str),
    /// What a client has sent is answered when this is set again with another number, and then until
    /// it sends something more: the client takes turns with the server.
    Lockstep(u64),
    /// Connections that have subscribed do not hear that a right is missing.
    HideDenials,
    /// Connections that have subscribed stand, and nothing comes out of them; the others pass, and
    /// those that subscribe from now on.
    DeadSubscriptions,
}

/// A wire to a server's port; what it does can be changed while it is in use.
pub(crate) struct Proxy {
    port: u16,
    mode: Arc<watch::Sender<ProxyMode>>,
    /// Counts up when all connections are to end.
    cuts: Arc<watch::Sender<u64>>,
    /// Connections that stand; each holds a clone.
    standing: Arc<()>,
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
        let standing = Arc::new(());
        let accepting = tokio::spawn(accept(
            listener,
            server,
            Arc::clone(&mode),
            Arc::clone(&cuts),
            Arc::clone(&standing),
        ));
        Self {
            port,
            mode,
            cuts,
            standing,
            accepting,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What was swallowed is lost, so connections do not survive the end of that.
    pub(crate) async fn set(&self, mode: ProxyMode) {
        let before = self.mode.send_replace(mode);
        if before == ProxyMode::BlackHole || mode == ProxyMode::Refuse {
            self.cut();
        }
        if mode == ProxyMode::Refuse {
            // Not even the command that is on its way gets through after this.
            eventually("no connection stands", async || {
                // One is ours, one the accepting task's.
                Arc::strong_count(&self.standing) == 2
            })
            .await;
        }
    }

    /// Ends the connections that stand.
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
    standing: Arc<()>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (mut cut, stands) = (cuts.subscribe(), Arc::clone(&standing));
        if *mode.borrow() == ProxyMode::Refuse {
            continue;
        }
        let Ok(upstream) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
            continue;
        };
        let (up, down) = (upstream.into_split(), client.into_split());
        let born = *mode.borrow();
        let subscribed = Arc::new(AtomicBool::new(false));
        let also = Arc::clone(&subscribed);
        let asked = Arc::new(AtomicBool::new(false));
        let (asks, answers) = (Turn::Asks(Arc::clone(&asked)), Turn::Answers(asked));
        let (there, back) = (
            pump(down.0, up.1, mode.subscribe(), born, also, asks),
            pump(up.0, down.1, mode.subscribe(), born, subscribed, answers),
        );
        tokio::spawn(async move {
            let _stands = stands;
            tokio::select! {
                () = there => {}
                () = back => {}
                _ = cut.changed() => {}
            }
        });
    }
}

/// The directions of a connection, and whether something was asked since the last turn.
enum Turn {
    Asks(Arc<AtomicBool>),
    Answers(Arc<AtomicBool>),
}

/// One direction of one connection.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<ProxyMode>,
    born: ProxyMode,
    subscribed: Arc<AtomicBool>,
    turn: Turn,
) {
    let mut bytes = vec![0; 1 << 16];
    let mut torn = 0;
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let now = *mode.borrow();
        if now != ProxyMode::DeadSubscriptions && says(&bytes[..read], "SUBSCRIBE") {
            subscribed.store(true, Ordering::SeqCst);
        }
        match now {
            ProxyMode::BlackHole => continue,
            ProxyMode::DeadConnections if born != ProxyMode::DeadConnections => continue,
            ProxyMode::CutMidReply(after) if matches!(turn, Turn::Answers(_)) => {
                torn += 1;
                if torn > after {
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
            ProxyMode::Hold(word) if says(&bytes[..read], word) => {
                let _ = mode.wait_for(|mode| *mode != now).await;
            }
            ProxyMode::Lockstep(_) => match &turn {
                Turn::Asks(asked) => asked.store(true, Ordering::SeqCst),
                Turn::Answers(asked) => {
                    if asked.load(Ordering::SeqCst) {
                        let _ = mode.wait_for(|mode| *mode != now).await;
                        asked.store(false, Ordering::SeqCst);
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

fn says(bytes: &[u8], word: &str) -> bool {
    let mut windows = bytes.windows(word.len());
    windows.any(|said| said.eq_ignore_ascii_case(word.as_bytes()))
}
