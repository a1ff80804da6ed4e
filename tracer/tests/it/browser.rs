//! The pages in a real browser: nothing on its console, nothing fetched from elsewhere, no label on another, keys reach the
//! steps, narrow and wide, light and dark. Screenshots are left in the folder that is printed.

use crate::page_samples::{many, recorded, with_api};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;
use why502::page;

const LIMIT: Duration = Duration::from_secs(120);

/// chromium, driven by its DevTools protocol over pipes: it reads from 3 and writes to 4, messages end with a zero.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    next: u64,
    /// What it said beside answers.
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn start() -> Option<Browser> {
        let path = std::env::var_os("PATH")?;
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let program = std::env::split_paths(&path).flat_map(|dir| names.map(|n| dir.join(n))).find(|p| p.is_file())?;
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .args(["--no-first-run", "--disable-background-networking", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (send, from) = channel();
        let out = child.stdout.take().unwrap();
        thread::spawn(move || {
            for message in BufReader::new(out).split(0) {
                let Ok(message) = message else { return };
                if send.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let to = child.stdin.take().unwrap();
        let mut browser = Browser { child, to, from, session: None, next: 0, events: Vec::new(), _profile: profile };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.ask("Target.attachToTarget", attach);
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let got = self.from.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("{method}: {e}"));
            if got["id"] == self.next {
                assert!(got["error"].is_null(), "{method}: {got}");
                return got["result"].clone();
            }
            self.events.push(got);
        }
    }

    pub(crate) fn load(&mut self, url: &str, width: u32, scheme: &str) {
        self.events.clear();
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false}),
        );
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.ask("Emulation.setEmulatedMedia", json!({"features": features}));
        self.ask("Page.navigate", json!({"url": url}));
        while !self.events.iter().any(|e| e["method"] == "Page.loadEventFired") {
            let event = self.from.recv_timeout(LIMIT).expect("the page to load");
            self.events.push(event);
        }
    }

    pub(crate) fn eval(&mut self, script: &str) -> Value {
        let result = self.ask("Runtime.evaluate", json!({"expression": script, "returnByValue": true}));
        assert!(result["exceptionDetails"].is_null(), "{result}");
        result["result"]["value"].clone()
    }

    pub(crate) fn key(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let code = if key == "Tab" { 9 } else { 13 };
            self.ask(
                "Input.dispatchKeyEvent",
                json!({"type": kind, "key": key, "windowsVirtualKeyCode": code, "text": if key == "Enter" { "\r" } else { "" }}),
            );
        }
    }

    /// What went wrong, and every address that was asked for.
    pub(crate) fn complaints(&self, origin: &str) -> Vec<String> {
        let of = |e: &Value| {
            let p = &e["params"];
            match e["method"].as_str() {
                Some("Log.entryAdded") => Some(p["entry"].to_string()),
                Some("Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Page.javascriptDialogOpening") => {
                    Some(p.to_string())
                }
                Some("Network.requestWillBeSent") => {
                    let url = p["request"]["url"].as_str().unwrap();
                    (!url.starts_with(origin) && url != "data:,").then(|| format!("asked for {url}"))
                }
                _ => None,
            }
        };
        self.events.iter().filter_map(of).collect()
    }

    pub(crate) fn screenshot(&mut self, to: &Path) {
        let shot = self.ask("Page.captureScreenshot", json!({"captureBeyondViewport": true}));
        fs::write(to, decode(shot["data"].as_str().unwrap())).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Base64, RFC 4648.
fn decode(text: &str) -> Vec<u8> {
    let value = |b: u8| match b {
        b'A'..=b'Z' => b - b'A',
        b'a'..=b'z' => b - b'a' + 26,
        b'0'..=b'9' => b - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bytes: Vec<u8> = text.bytes().filter(|b| *b != b'=').map(value).collect();
    let group = |g: &[u8]| {
        let bits = g.iter().enumerate().fold(0u32, |n, (i, v)| n | u32::from(*v) << (18 - 6 * i));
        bits.to_be_bytes()[1..g.len()].to_vec()
    };
    bytes.chunks(4).flat_map(group).collect()
}

/// Pairs of texts of the pictures that lie on each other by more than a pixel, and texts that are cut off.
pub(crate) const OVERLAPS: &str = "(() => {
  const bad = [];
  for (const svg of document.querySelectorAll('.picture svg')) {
    const whole = svg.getBoundingClientRect();
    const all = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    all.forEach(([a, r], n) => {
      if (r.left < whole.left - 1 || r.right > whole.right + 1) bad.push(a + ' is cut off');
      for (const [b, q] of all.slice(n + 1))
        if (r.left < q.right - 1 && q.left < r.right - 1 && r.top < q.bottom - 3 && q.top < r.bottom - 3) bad.push(a + ' / ' + b);
    });
  }
  return bad.join('; ');
})()";

#[test]
fn in_a_browser() {
    let Some(mut browser) = Browser::start() else {
        println!("skipped: no chromium here (cargo xtask setup installs it)");
        return;
    };
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pages");
    fs::create_dir_all(&dir).unwrap();
    println!("screenshots in {}", dir.display());
    let mut pages: Vec<(String, String)> = Vec::new();
    for n in [1, 50, 1000] {
        let (stop, incidents) = many(n);
        pages.push((format!("requests-{n}"), page::file("x.rec", &[stop], &incidents, 0)));
    }
    let (stop, incidents) = with_api();
    pages.push(("deleted".into(), page::file("x.rec", &[stop], &incidents, 0)));
    for name in
        ["supervisord", "sidecar-gone-first", "short-control-timeout", "containerd-prestop-failed", "several-stops"]
    {
        let (stops, incidents) = recorded(name);
        pages.push((name.into(), page::file(name, &stops, &incidents, 0)));
    }
    for (name, html) in pages {
        let file = dir.join(format!("{name}.html"));
        fs::write(&file, html).unwrap();
        let url = format!("file://{}", file.display());
        for (width, size) in [(1280, "wide"), (390, "narrow")] {
            for scheme in ["light", "dark"] {
                browser.load(&url, width, scheme);
                let what = format!("{name}, {size}, {scheme}");
                assert_eq!(browser.complaints(&url), Vec::<String>::new(), "{what}");
                assert_eq!(browser.eval(OVERLAPS), "", "{what}");
                let over = browser.eval("document.documentElement.scrollWidth - innerWidth").as_f64().unwrap();
                assert!(over <= 0.0, "{what}: {over} px wider than the window");
                browser.screenshot(&dir.join(format!("{name}-{size}-{scheme}.png")));
            }
        }
    }
    keys(&mut browser, &dir);
}

/// By keys alone: over the picture, to a step, to its row.
fn keys(browser: &mut Browser, dir: &Path) {
    browser.load(&format!("file://{}/short-control-timeout.html", dir.display()), 1280, "light");
    let focus = "(document.activeElement.getAttribute('class') || '') + ' ' + (document.activeElement.getAttribute('href') || '')";
    let mut seen = Vec::new();
    for _ in 0..40 {
        browser.key("Tab");
        seen.push(browser.eval(focus).as_str().unwrap().to_owned());
        if seen.last().unwrap().starts_with("step") {
            break;
        }
    }
    assert!(seen.iter().any(|s| s.starts_with("skip ")), "{seen:?}");
    assert!(seen.iter().any(|s| s.starts_with("picture")), "{seen:?}");
    assert!(seen.last().unwrap().starts_with("step"), "{seen:?}");
    let outline = browser.eval("getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(outline, "solid", "the focus is to be seen");
    browser.key("Enter");
    assert_eq!(browser.eval("document.querySelector('tr:target') !== null"), true);
}
