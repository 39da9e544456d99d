//! A `redis-server` for a bench.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tidegate::BoxError;

/// A server on a port of its own that keeps nothing on disk. It ends when this value is dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
}

impl Server {
    pub(crate) fn start() -> Result<Self, BoxError> {
        let binary =
            std::env::var("TIDEGATE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BoxError::new)?;
        let port = free.local_addr().map_err(BoxError::new)?.port();
        drop(free);
        let mut command = Command::new(&binary);
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().map_err(|error| {
            format!(
                "{binary}: {error}; this needs a redis-server: `apt-get install redis-server` (or \
                 `brew install redis`), or name the binary in TIDEGATE_REDIS_SERVER"
            )
        })?;
        let mut server = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = server.child.try_wait().map_err(BoxError::new)? {
                return Err(format!("{binary} ended at once: {status}").into());
            }
            if Instant::now() > deadline {
                return Err(format!("{binary} does not answer on port {port}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
