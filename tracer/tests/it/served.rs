//! The pages as `serve` gives them, from its store, in a real browser: each link leads somewhere, keys are enough, text is
//! to be read in both schemes, and what hostile containers call themselves stays text: in pages, metrics and a terminal.

use crate::browser::{Browser, OVERLAPS};
use crate::hostile::{HOSTILE, hostile};
use crate::page_samples::many;
use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use why502::model::{Incident, Outcome, Output, Stop};
use why502::serve::{Bounds, Server, State};
use why502::sinks::json;
use why502::store::{Limits, Now, Store, sink};

const PATIENCE: Duration = Duration::from_secs(60);

struct Agent {
    dir: tempfile::TempDir,
    store: Store,
    state: Arc<State>,
    server: Server,
    written: u64,
}

impl Agent {
    fn start() -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let now = || Now { boot_id: "b".into(), boot_s: 1, wall_s: 1 };
        let store = Store::start(dir.path(), Limits::default(), sink::WAITING, now).unwrap();
        let state = Arc::new(State::new(store.view()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::start(listener, Arc::clone(&state), Bounds::default()).unwrap();
        Agent { dir, store, state, server, written: 0 }
    }

    fn keep(&mut self, id: &str, mut stop: Stop, incidents: Vec<Incident>) {
        stop.id = format!("s-{id}");
        // Each its own pod: stops of one pod at one time are one picture.
        if let Some(pod) = &mut stop.pod {
            pod.uid = stop.id.clone();
        }
        if let Some(container) = &mut stop.container {
            container.id = format!("{}{}", stop.id, container.id);
        }
        for (n, mut incident) in incidents.into_iter().enumerate() {
            (incident.id, incident.stop) = (format!("i-{id}-{n}"), Some(stop.id.clone()));
            self.push(Output::Incident(Box::new(incident)));
        }
        self.push(Output::Stop(Box::new(stop)));
    }

    fn push(&mut self, output: Output) {
        self.state.tally().output(&output);
        self.store.push(json::output(&output).unwrap());
        self.written += 1;
    }

    fn is_written(&self) {
        let begin = Instant::now();
        while *self.state.store.durable.borrow() < self.written {
            assert!(begin.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.server.address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nAccept: text/html\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    fn end(self) {
        self.server.stop();
        assert!(self.store.finish(PATIENCE));
    }
}

/// Text whose contrast with what is behind it is below WCAG's AA. Pictures have shapes behind theirs: those are computed
/// from the palette elsewhere.
const CONTRAST: &str = "(() => {
  const parts = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const bad = new Set();
  let seen = 0;
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    seen++;
    const [a, b] = [parts(getComputedStyle(e).color), behind(e)].map(c => light(c.slice(0, 3)));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.add(e.tagName + '.' + e.className + ' ' + ratio.toFixed(2));
  }
  return seen < 3 ? 'no text' : [...bad].join('; ');
})()";

/// Boxes of text that lie on each other, outside of pictures.
const PILED: &str = "(() => {
  const bad = [];
  for (const row of document.querySelectorAll('tr, form, nav, ul')) {
    const boxes = [...row.children].filter(c => c.offsetWidth).map(c => [c.textContent.slice(0, 30), c.getBoundingClientRect()]);
    boxes.forEach(([a, r], n) => { for (const [b, q] of boxes.slice(n + 1))
      if (r.left < q.right - 1 && q.left < r.right - 1 && r.top < q.bottom - 1 && q.top < r.bottom - 1) bad.push(a + ' / ' + b); });
  }
  return bad.join('; ');
})()";

const ACTIVE: &str = "document.querySelectorAll('script, img, iframe, object, embed, base, [onerror], [onload], [onfocus], [style], \
    link:not([href$=\"style.css\"]):not([rel=icon]), form:not([action=\"./\"]), [formaction]').length";

fn links(browser: &mut Browser) -> Vec<String> {
    let all = browser.eval("JSON.stringify([...document.querySelectorAll('a[href]')].map(a => new URL(a.getAttribute('href'), location.href).href))");
    let all: Vec<String> = serde_json::from_str(all.as_str().unwrap()).unwrap();
    all.into_iter().map(|link| link.split('#').next().unwrap().to_owned()).collect()
}

#[test]
fn in_a_browser() {
    let Some(mut browser) = Browser::start() else {
        println!("skipped: no chromium here (cargo xtask setup installs it)");
        return;
    };
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pages");
    fs::create_dir_all(&dir).unwrap();
    println!("screenshots in {}", dir.display());
    let mut agent = Agent::start();
    for n in [0, 3, 50, 1000] {
        let (stop, incidents) = many(n);
        agent.keep(&n.to_string(), stop, incidents);
    }
    agent.is_written();
    let origin = format!("http://{}", agent.server.address);
    for (path, name) in [
        ("/", "list"),
        ("/?kind=stops", "stops"),
        ("/?cause=nonsense", "problem"),
        ("/stop/s-3", "stop-3"),
        ("/stop/s-1000", "stop-1000"),
        ("/incident/i-3-0", "incident"),
        ("/stop/nothing", "missing"),
    ] {
        for (width, size) in [(1280, "wide"), (390, "narrow")] {
            for (scheme, page) in [("light", "rgb(255, 255, 255)"), ("dark", "rgb(15, 19, 23)")] {
                let what = format!("{path}, {size}, {scheme}");
                browser.load(&format!("{origin}{path}"), width, scheme);
                // That a page is not there, or not understood, is an error on the console.
                let expected = usize::from(["problem", "missing"].contains(&name));
                let complaints = browser.complaints(&origin);
                assert!(complaints.len() <= expected, "{what}: {complaints:?}");
                assert_eq!(browser.eval("getComputedStyle(document.body).backgroundColor"), page, "{what}: its style");
                assert_eq!(browser.eval(CONTRAST), "", "{what}");
                assert_eq!(browser.eval(OVERLAPS), "", "{what}");
                assert_eq!(browser.eval(PILED), "", "{what}");
                let over = browser.eval("document.documentElement.scrollWidth - innerWidth").as_f64().unwrap();
                assert!(over <= 0.0, "{what}: {over} px wider than the window");
                browser.screenshot(&dir.join(format!("served-{name}-{size}-{scheme}.png")));
            }
        }
    }
    every_link(&mut browser, &origin);
    by_keys(&mut browser, &origin);
    agent.end();
}

/// From the list to everything that is linked from there; of many of a kind a few.
fn every_link(browser: &mut Browser, origin: &str) {
    let (mut open, mut seen) = (VecDeque::from([format!("{origin}/")]), BTreeSet::new());
    let (mut stops, mut incidents) = (0, 0);
    while let Some(url) = open.pop_front() {
        if !seen.insert(url.clone()) {
            continue;
        }
        if url.contains("/incident/") {
            incidents += 1;
            if incidents > 5 {
                continue;
            }
        }
        stops += u64::from(url.contains("/stop/"));
        browser.load(&url, 1280, "light");
        assert_eq!(browser.complaints(origin), Vec::<String>::new(), "{url}");
        let found = links(browser);
        assert!(found.iter().all(|link| link.starts_with(origin)), "{url}: {found:?}");
        open.extend(found);
    }
    assert!(stops == 4 && incidents > 5, "{stops} stops, {incidents} incidents: {seen:?}");
}

/// Through the form and to a stop, with keys alone.
fn by_keys(browser: &mut Browser, origin: &str) {
    browser.load(&format!("{origin}/?kind=stops"), 1280, "light");
    let mut seen = Vec::new();
    for _ in 0..40 {
        browser.key("Tab");
        let outline = browser.eval("getComputedStyle(document.activeElement).outlineStyle");
        assert_ne!(outline, "none", "the focus is to be seen");
        let focus =
            browser.eval("document.activeElement.name || document.activeElement.getAttribute('href') || 'button'");
        seen.push(focus.as_str().unwrap().to_owned());
        if seen.last().unwrap().starts_with("stop/") {
            break;
        }
    }
    for field in ["kind", "cause", "namespace", "pod", "workload", "since", "until"] {
        assert!(seen.iter().any(|name| name == field), "{field}: {seen:?}");
    }
    let link = format!("{origin}/{}", seen.last().unwrap());
    browser.key("Enter");
    let begin = Instant::now();
    while browser.eval("location.href") != link.as_str() {
        assert!(begin.elapsed() < PATIENCE, "Enter leads to {link}");
    }
}

#[test]
fn what_containers_call_themselves_stays_text() {
    let mut agent = Agent::start();
    for (n, text) in HOSTILE.iter().enumerate() {
        let (stop, incidents) = hostile(text);
        agent.keep(&n.to_string(), stop, incidents);
    }
    agent.is_written();
    let bad = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c) || c == '\u{feff}';
    let (_, metrics) = agent.get("/metrics");
    assert!(metrics.contains("alert(1)") && !metrics.contains(bad));
    let names = ["why502_", "process_", "# "];
    assert!(metrics.lines().all(|line| names.iter().any(|name| line.starts_with(name))), "{metrics}");
    let said = Command::new(env!("CARGO_BIN_EXE_why502"))
        .args(["incidents", "--store", agent.dir.path().to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("alert(1)") && !said.contains(bad), "{said:?}");

    let browser = Browser::start();
    if browser.is_none() {
        println!("no chromium here: pages are read, not loaded");
    }
    let mut browser = browser;
    let origin = format!("http://{}", agent.server.address);
    let mut paths = vec!["/".to_owned()];
    for n in 0..HOSTILE.len() {
        paths.extend([format!("/stop/s-{n}"), format!("/incident/i-{n}-0")]);
    }
    // And in the form, and where there is nothing.
    for text in HOSTILE {
        let text: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        paths.extend([format!("/?pod={text}&kind={text}"), format!("/stop/{text}"), format!("/incident/{text}")]);
    }
    for path in paths {
        let (head, body) = agent.get(&path);
        assert!(head.to_lowercase().contains("content-security-policy: default-src 'none'"), "{path}: {head}");
        assert!(head.to_lowercase().contains("content-type: text/html; charset=utf-8"), "{path}: {head}");
        assert!(!body.contains(bad), "{path}");
        let Some(browser) = &mut browser else { continue };
        browser.load(&format!("{origin}{path}"), 1280, "light");
        let complaints = browser.complaints(&origin);
        let expected = usize::from(!head.contains(" 200 "));
        assert!(complaints.len() <= expected, "{path}: {complaints:?}");
        assert_eq!(browser.eval(ACTIVE), 0, "{path}");
    }
    agent.end();
}

#[test]
fn a_thousand_requests_of_a_stop() {
    let mut agent = Agent::start();
    let (stop, incidents) = many(1000);
    let lost = incidents.iter().filter(|i| i.outcome == Outcome::Unanswered).count();
    agent.keep("big", stop, incidents);
    agent.is_written();
    let (head, page) = agent.get("/stop/s-big");
    assert!(head.contains(" 200 ") && page.contains("1000 requests were lost."), "{head}");
    assert!(page.contains(&format!("<td class=\"n\">{lost}</td>")), "{lost}");
    assert!(!page.contains("more are not shown here"));
    assert!(page.len() < 250_000, "{} bytes", page.len());
    let (_, list) = agent.get("/");
    assert!(list.matches("<tr>").count() < 10, "they are folded");
    assert!(list.contains("rel=\"next\""), "there is more than a page");
    agent.end();
}
