//! A headless Chromium, controlled through the DevTools protocol.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::{Scratch, is_installed};

/// The longest wait for the browser or for a condition in the page.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Browser {
    /// The process ends when this value is dropped.
    _process: Child,
    _profile: Scratch,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: Option<String>,
    last_id: u64,
}

impl Browser {
    /// Starts a browser with an empty page of this size.
    pub(crate) async fn open(width: u32, height: u32) -> Self {
        let profile = Scratch::new();
        let mut process = Command::new(binary())
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args(["--disable-dev-shm-usage", "--disable-background-networking"])
            .args(["--remote-debugging-port=0", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium starts");
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let mut output = String::new();
        let url = loop {
            let line = timeout(TIMEOUT, lines.next_line()).await;
            let line = line.expect("chromium says where it listens").expect("text");
            let line = line.unwrap_or_else(|| panic!("chromium ended: {output}"));
            if let Some(url) = line.strip_prefix("DevTools listening on ") {
                break url.trim().to_owned();
            }
            output.push_str(&line);
        };
        // Chromium blocks when the pipe is full, so it is read to the end.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = connect_async(url).await.expect("chromium answers");
        let mut browser = Self {
            _process: process,
            _profile: profile,
            socket,
            session: None,
            last_id: 0,
        };
        let target = json!({ "url": "about:blank" });
        let target = browser.call("Target.createTarget", target).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser
            .call("Emulation.setDeviceMetricsOverride", metrics)
            .await;
        browser
    }

    pub(crate) async fn go(&mut self, url: &str) {
        let navigated = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(navigated.get("errorText").is_none(), "{url}: {navigated}");
        let loaded = format!("location.href === '{url}' && document.readyState !== 'loading'");
        self.until(&loaded).await;
    }

    /// Sets the preferred colour scheme, `dark` or `light`.
    pub(crate) async fn prefer_color_scheme(&mut self, scheme: &str) {
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": feature }))
            .await;
    }

    /// Evaluates a JavaScript expression in the page.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let reply = self.call("Runtime.evaluate", params).await;
        assert!(
            reply.get("exceptionDetails").is_none(),
            "{expression}: {reply}"
        );
        reply["result"]["value"].clone()
    }

    pub(crate) async fn text(&mut self, id: &str) -> String {
        let text = format!("document.getElementById('{id}')?.textContent ?? ''");
        self.evaluate(&text)
            .await
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Clicks with the mouse into the middle of an element.
    pub(crate) async fn click(&mut self, id: &str) {
        let place = format!(
            "(() => {{ const n = document.getElementById('{id}'); n.scrollIntoView(); \
             const b = n.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] }})()"
        );
        let place = self.evaluate(&place).await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&mut self, expression: &str) {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        while self.evaluate(expression).await != true {
            if tokio::time::Instant::now() > deadline {
                let page = self
                    .evaluate("document.querySelector('main')?.innerText")
                    .await;
                panic!("never: {expression}; the page says {page}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Writes a screenshot to a file.
    pub(crate) async fn screenshot(&mut self, file: &Path) {
        self.evaluate("window.scrollTo(0, 0)").await;
        let screenshot = self
            .call("Page.captureScreenshot", json!({ "format": "png" }))
            .await;
        let bytes = STANDARD.decode(screenshot["data"].as_str().expect("a picture"));
        std::fs::write(file, bytes.expect("in base 64")).expect("a file");
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone().into();
        }
        let text = Message::text(message.to_string());
        self.socket.send(text).await.expect("chromium listens");
        loop {
            let message = timeout(TIMEOUT, self.socket.next()).await;
            let message = message.unwrap_or_else(|_| panic!("{method}: no answer"));
            let message = message.expect("chromium is there").expect("a message");
            let Message::Text(text) = message else {
                continue;
            };
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            if answer["id"] == id {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }
}

fn binary() -> String {
    if let Ok(binary) = std::env::var("TIDEGATE_CHROMIUM") {
        return binary;
    }
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names.into_iter().find(|name| is_installed(name));
    let found =
        found.expect("these tests need Chromium: `apt-get install chromium`, or TIDEGATE_CHROMIUM");
    found.to_owned()
}
