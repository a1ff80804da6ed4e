//! An API server as the published API describes it, as far as the source asks: lists, watches with bookmarks, 410, 401, and
//! whatever a server does that is slow or going away.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub const TOKEN: &str = "first";

#[derive(Default)]
pub struct State {
    token: String,
    version: u64,
    /// By the list's path.
    objects: BTreeMap<String, Vec<Value>>,
    watchers: Vec<(String, UnboundedSender<String>)>,
    /// Paths that answer with this status.
    pub refuse: BTreeMap<String, u16>,
    /// Watches from before this version are answered with 410.
    pub oldest: u64,
    /// Paths that never answer.
    pub hang: BTreeSet<String>,
    /// `path?query` of all requests.
    pub requests: Vec<String>,
    away: bool,
}

#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    port: u16,
}

struct Request {
    method: String,
    path: String,
    query: String,
    token: String,
    body: Value,
}

impl Api {
    pub async fn start() -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { token: TOKEN.into(), version: 100, ..State::default() };
        let api = Api { state: Arc::new(Mutex::new(state)), port };
        let served = api.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if !served.state().away {
                    tokio::spawn(served.clone().serve(stream));
                }
            }
        });
        api
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A kubeconfig whose token is read from a file in `dir`.
    pub fn kubeconfig(&self, dir: &std::path::Path) -> std::path::PathBuf {
        let (config, token) = (dir.join("config"), dir.join("token"));
        std::fs::write(&token, TOKEN).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: \"http://127.0.0.1:{}\"}}}}]\n\
             users: [{{name: u, user: {{tokenFile: {}}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             current-context: x\n",
            self.port,
            token.display()
        );
        std::fs::write(&config, text).unwrap();
        config
    }

    /// Who comes with another token is not known; watches that run go on until they are cut.
    pub fn rotate(&self, token: &str) {
        self.state().token = token.into();
    }

    /// Ends all watches.
    pub fn cut(&self) {
        self.state().watchers.clear();
    }

    /// Nobody is answered any more.
    pub fn away(&self, away: bool) {
        self.state().away = away;
        self.cut();
    }

    /// How many watches there are of a list.
    pub fn watchers(&self, path: &str) -> usize {
        self.state().watchers.iter().filter(|(p, to)| p == path && !to.is_closed()).count()
    }

    /// Puts an object in place, and tells those who watch. Not those who do not.
    pub fn put(&self, path: &str, object: Value) {
        self.change(path, object, false);
    }

    pub fn delete(&self, path: &str, object: Value) {
        self.change(path, object, true);
    }

    fn change(&self, path: &str, mut object: Value, gone: bool) {
        let mut state = self.state();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let all = state.objects.entry(path.into()).or_default();
        let old = all.iter().position(|o| o["metadata"]["uid"] == object["metadata"]["uid"]);
        let kind = match (gone, old) {
            (true, _) => "DELETED",
            (_, Some(_)) => "MODIFIED",
            _ => "ADDED",
        };
        old.map(|at| all.remove(at));
        if !gone {
            all.push(object.clone());
        }
        state.tell(path, &json!({"type": kind, "object": object}));
    }

    /// A bookmark of now; returns its version.
    pub fn bookmark(&self, path: &str) -> u64 {
        let mut state = self.state();
        state.version += 10;
        let version = state.version;
        let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}});
        state.tell(path, &json!({"type": "BOOKMARK", "object": object}));
        version
    }

    /// A line of a watch, whatever it is.
    pub fn line(&self, path: &str, value: &Value) {
        self.state().tell(path, value);
    }

    async fn serve(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read(&mut stream).await {
            // Connections from before that are still open.
            if self.state().away {
                return;
            }
            match self.answer(&request) {
                Answer::Json(status, body) => {
                    let body = body.to_string();
                    let head = format!(
                        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if stream.write_all(head.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Answer::Watch(lines) => return watch(stream, lines).await,
                Answer::Nothing => return std::future::pending().await,
            }
        }
    }

    fn answer(&self, r: &Request) -> Answer {
        let mut state = self.state();
        state.requests.push(format!("{}?{}", r.path, r.query));
        let status = |code: u16, message: &str| {
            let reason = if code == 410 { "Expired" } else { "" };
            let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
                "message": message, "reason": reason});
            Answer::Json(code, body)
        };
        if state.hang.contains(&r.path) {
            return Answer::Nothing;
        }
        if r.token != state.token {
            return status(401, "Unauthorized");
        }
        if let Some(code) = state.refuse.get(&r.path) {
            return status(*code, "because of a test");
        }
        if r.path == "/version" {
            let version = json!({"major": "1", "minor": "33", "gitVersion": "v1.33.1", "gitCommit": "", "gitTreeState": "",
                "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
            return Answer::Json(200, version);
        }
        if r.method == "POST" {
            let wanted = &r.body["spec"]["resourceAttributes"];
            let mut body = r.body.clone();
            body["status"] = json!({"allowed": wanted["resource"] != "events" || wanted["group"] != ""});
            return Answer::Json(201, body);
        }
        if r.query.contains("watch=true") {
            let from: u64 = value(&r.query, "resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
            if from < state.oldest {
                return status(410, "too old resource version");
            }
            let (to, lines) = unbounded_channel();
            state.watchers.push((r.path.clone(), to));
            return Answer::Watch(lines);
        }
        let version = json!({"resourceVersion": state.version.to_string()});
        if let Some(all) = state.objects.get(&r.path) {
            let uid = value(&r.query, "fieldSelector").and_then(|s| s.strip_prefix("involvedObject.uid%3D"));
            let wanted = |o: &&Value| uid.is_none_or(|uid| o["involvedObject"]["uid"] == uid);
            let items: Vec<&Value> = all.iter().filter(wanted).collect();
            return Answer::Json(200, json!({"kind": "List", "apiVersion": "v1", "metadata": version, "items": items}));
        }
        let found = r
            .path
            .rsplit_once('/')
            .and_then(|(list, name)| state.objects.get(list)?.iter().find(|o| o["metadata"]["name"] == name));
        if let Some(object) = found {
            return Answer::Json(200, object.clone());
        }
        // A list without objects is a list; an object that is not there is not found.
        let lists = ["pods", "nodes", "endpointslices", "endpoints", "events"];
        if lists.iter().any(|l| r.path.ends_with(&format!("/{l}"))) {
            return Answer::Json(200, json!({"kind": "List", "apiVersion": "v1", "metadata": version, "items": []}));
        }
        status(404, "not found")
    }
}

impl State {
    fn tell(&mut self, path: &str, line: &Value) {
        self.watchers.retain(|(p, to)| p != path || to.send(line.to_string()).is_ok());
    }
}

enum Answer {
    Json(u16, Value),
    Watch(UnboundedReceiver<String>),
    Nothing,
}

fn value<'q>(query: &'q str, key: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut length, mut token) = (0, String::new());
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.ok()?;
        let header = header.trim_end();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => token = value.trim_start_matches("Bearer ").to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Request { method, path: path.to_owned(), query: query.to_owned(), token, body })
}

/// Until it is cut, or the client has gone.
async fn watch(mut stream: BufReader<TcpStream>, mut lines: UnboundedReceiver<String>) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let mut one = [0];
    loop {
        tokio::select! {
            line = lines.recv() => {
                let Some(line) = line else { break };
                let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
                if stream.write_all(chunk.as_bytes()).await.is_err() {
                    return;
                }
            }
            _ = stream.read(&mut one) => return,
        }
    }
    // The end may come too late for a client that has gone.
    let _ = stream.write_all(b"0\r\n\r\n").await;
}
