//! Closes that lose nothing, or nothing by the server's doing: why502 must stay silent about all of them.
//!
//! `CLOSES=10000` for the full figure, which is for each of them.

mod common;

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use why502::model::incident::Level;
use why502_tests::guard::{self, run, wait};
use why502_tests::launch::{Launched, Spec};
use why502_tests::load::{Abort, Load, LoadConf, Outcome, Progress, Request, Shape};
use why502_tests::nginx::{Listen, NginxConf, Tls};
use why502_tests::php::FpmConf;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{self, Tracer};
use why502_tests::tun::Trouble;

/// No control takes longer, even at the full figure on two cores.
const LIMIT: Duration = Duration::from_secs(900);

fn closes() -> u64 {
    guard::number("CLOSES", 300)
}

/// Runs the load of one control beside the tracer. `right`: what its requests must have come to, else the control did not
/// do what it is for. `undecidable`: incidents that say no more than `possible` are borne.
fn control(
    name: &str,
    conf: SiteConf,
    undecidable: bool,
    right: fn(&Request) -> bool,
    load: impl FnOnce(&Site) -> LoadConf,
) -> Result<()> {
    measured(name, conf, undecidable, |site| {
        let load = Load::start(Some(site.client.path()), load(site))?;
        wait("the end of the load", LIMIT, || load.finished())?;
        let closed = Progress::get(&load.progress.connections);
        let requests = load.join()?;
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        for r in &requests {
            *seen.entry(r.outcome.name()).or_default() += 1;
        }
        println!("{name}: {} ledger lines: {seen:?}", requests.len());
        let wrong: Vec<&Request> = requests.iter().filter(|r| !right(r)).collect();
        ensure!(wrong.is_empty(), "{name}: {} requests ended otherwise, such as {:?}", wrong.len(), wrong[0]);
        Ok(closed)
    })
}

/// `act` makes the closes and says how many.
fn measured(name: &str, conf: SiteConf, undecidable: bool, act: impl FnOnce(&Site) -> Result<u64>) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = Site::start(&conf)?;
    let watch = Tracer::watch(&tracer::binary()?, &[])?;
    let closed = act(&site)?;
    wait("the server's last close", Duration::from_secs(60), || established(&site) == 0)?;
    let said = watch.stop()?;
    common::check_schema(&said)?;
    let claims = said.claims(&site);
    let falses: Vec<_> = claims.iter().filter(|c| !undecidable || c.level != Level::Possible).collect();
    let possible = claims.len() - falses.len();
    println!("{name}: {closed} closes, {} false incidents, {possible} that say `possible`", falses.len());
    ensure!(closed >= closes(), "{name}: only {closed} closes of {}", closes());
    let some: Vec<String> = falses.iter().take(10).map(|c| format!("{name}: false: {c}")).collect();
    ensure!(falses.is_empty(), "{} false incidents:\n{}", falses.len(), some.join("\n"));
    Ok(())
}

/// Connections of the pod's nginx that are still open.
fn established(site: &Site) -> usize {
    let pid = site.nginx.container.pid();
    let open = |table: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        let rows = text.lines().skip(1).map(|l| l.split_whitespace().map(String::from).collect::<Vec<_>>());
        let ports = [":0050", ":0051", ":01BB"];
        rows.filter(|f| f.len() > 3 && f[3] == "01" && ports.iter().any(|p| f[1].ends_with(p))).count()
    };
    open("tcp") + open("tcp6")
}

fn with_php(children: u32) -> SiteConf {
    SiteConf { fpm: Some(FpmConf { children, ..FpmConf::default() }), ..SiteConf::default() }
}

fn with_server(directives: &str) -> SiteConf {
    let nginx = NginxConf { server_extra: directives.into(), ..NginxConf::default() };
    SiteConf { nginx, ..SiteConf::default() }
}

fn load(site: &Site, path: &str, connections: usize) -> LoadConf {
    let mut conf = LoadConf::new(site.pod_addr(false), path);
    (conf.connections, conf.max_attempts) = (connections, Some(closes() + connections as u64));
    conf
}

fn per_request(site: &Site, path: &str, connections: usize) -> LoadConf {
    LoadConf { keep_alive: false, ..load(site, path, connections) }
}

fn ok(r: &Request) -> bool {
    matches!(r.outcome, Outcome::Ok { .. })
}

#[test]
fn keep_alive_idle_timeout() -> Result<()> {
    let nginx = NginxConf { keepalive_timeout: 1, ..NginxConf::default() };
    control("keep-alive, closed when idle", SiteConf { nginx, ..SiteConf::default() }, false, ok, |site| LoadConf {
        // Longer than the server waits, so every connection is closed by it.
        think: Duration::from_millis(1400),
        max_attempts: Some(closes() + 300),
        ..load(site, "/static", 300)
    })
}

#[test]
fn keep_alive_announced_close() -> Result<()> {
    let nginx = NginxConf { keepalive_requests: 3, listen: Listen::Mapped, ..NginxConf::default() };
    let conf = SiteConf { nginx, ..with_php(4) };
    control("keep-alive, closed after 3 requests", conf, false, ok, |site| LoadConf {
        more_paths: vec!["/fast.php".into()],
        max_attempts: Some(3 * closes() + 120),
        ..load(site, "/static", 40)
    })
}

#[test]
fn connection_per_request() -> Result<()> {
    let nginx = NginxConf { listen: Listen::Both, workers: 2, reuseport: true, ..NginxConf::default() };
    control("a connection per request", SiteConf { nginx, ..with_php(4) }, false, ok, |site| LoadConf {
        target: site.pod_addr(true),
        more_paths: vec!["/fast.php".into()],
        ..per_request(site, "/static", 40)
    })
}

#[test]
fn too_large_an_upload() -> Result<()> {
    let right = |r: &Request| r.outcome == Outcome::HttpError { status: 413 };
    control("413 during an upload", SiteConf::default(), false, right, |site| LoadConf {
        shape: Shape::Upload { bytes: 200_000, expect: false },
        ..per_request(site, "/small", 20)
    })
}

#[test]
fn return_444() -> Result<()> {
    control(
        "return 444",
        SiteConf::default(),
        false,
        |r| r.outcome == Outcome::Eof,
        |site| per_request(site, "/444", 20),
    )
}

#[test]
fn header_timeout() -> Result<()> {
    let conf = with_server("client_header_timeout 1s;");
    control(
        "408, header not finished",
        conf,
        false,
        |r| r.deliberate,
        |site| LoadConf { shape: Shape::PartialHeader, ..per_request(site, "/static", 200) },
    )
}

#[test]
fn body_timeout() -> Result<()> {
    let mut conf = with_php(4);
    conf.nginx.server_extra = "client_body_timeout 1s;".into();
    control(
        "408, body not finished",
        conf,
        false,
        |r| r.deliberate,
        |site| LoadConf { shape: Shape::PartialBody, ..per_request(site, "/fast.php", 200) },
    )
}

#[test]
fn nothing_sent() -> Result<()> {
    let conf = with_server("client_header_timeout 1s;");
    control(
        "connections without a request",
        conf,
        false,
        |r| r.deliberate,
        |site| LoadConf { shape: Shape::Idle(Duration::from_secs(20)), ..per_request(site, "/static", 200) },
    )
}

#[test]
fn chunked_and_event_stream_ends() -> Result<()> {
    control("chunked and event-stream ends", with_php(12), false, ok, |site| LoadConf {
        more_paths: vec!["/fast.php".into(), "/fast.php".into(), "/drip.php?n=1".into()],
        ..per_request(site, "/sse.php?n=3", 12)
    })
}

#[test]
fn expect_100_continue() -> Result<()> {
    control("100-continue", with_php(4), false, ok, |site| LoadConf {
        shape: Shape::Upload { bytes: 3000, expect: true },
        ..per_request(site, "/fast.php", 20)
    })
}

fn abort(how: Abort) -> Result<()> {
    let name = if how == Abort::Fin { "client abort by FIN" } else { "client abort by RST" };
    control(
        name,
        with_php(16),
        false,
        |r| r.outcome == Outcome::Aborted,
        |site| LoadConf {
            // php works on for an aborted request, so more than this would only wait in its queue.
            rate: Some(200.0),
            abort: Some((Duration::from_millis(10), how)),
            ..per_request(site, "/slow.php?ms=60", 20)
        },
    )
}

#[test]
fn client_abort_by_fin() -> Result<()> {
    abort(Abort::Fin)
}

#[test]
fn client_abort_by_rst() -> Result<()> {
    abort(Abort::Rst)
}

#[test]
fn sockets_killed_by_an_administrator() -> Result<()> {
    measured("ss -K", with_php(4), false, |site| {
        let conf =
            LoadConf { max_attempts: None, more_paths: vec!["/slow.php?ms=5".into()], ..load(site, "/static", 20) };
        let load = Load::start(Some(site.client.path()), conf)?;
        let ours = [(&site.pod.netns, ["sport", "=", ":80"]), (&site.client, ["dport", "=", ":80"])];
        let (mut n, mut killed) = (0, 0);
        wait("enough killed sockets", LIMIT, || {
            let (ns, filter) = &ours[n % 2];
            n += 1;
            let args = [&["-K", "-H", "-t", "state", "established"], &filter[..]].concat();
            // ss lists what it has killed.
            killed += ns.run(|| run("ss", &args)).map_or(0, |out| out.map_or(0, |o| o.lines().count()));
            killed as u64 >= closes()
        })
        .with_context(|| format!("ss -K killed {killed} sockets (needs CONFIG_INET_DIAG_DESTROY)"))?;
        load.stop()?;
        Ok(killed as u64)
    })
}

fn lossy(keep_alive: bool) -> Result<()> {
    let trouble =
        Trouble { delay: Duration::from_millis(1), loss: 0.01, duplicate: 0.01, reorder: 0.02, ..Trouble::default() };
    let nginx = NginxConf { keepalive_requests: 3, ..NginxConf::default() };
    let conf = SiteConf { nginx, trouble: Some(trouble), ..with_php(4) };
    let name = if keep_alive { "lossy path, keep-alive" } else { "lossy path, a connection per request" };
    measured(name, conf, false, |site| {
        let factor = if keep_alive { 3 } else { 1 };
        let conf = LoadConf {
            keep_alive,
            more_paths: vec!["/fast.php".into()],
            max_attempts: Some(factor * (closes() + 60)),
            ..load(site, "/static", 60)
        };
        let load = Load::start(Some(site.client.path()), conf)?;
        wait("the end of the load", LIMIT, || load.finished())?;
        let closed = Progress::get(&load.progress.connections);
        let requests = load.join()?;
        let wrong = requests.iter().find(|r| !ok(r));
        ensure!(wrong.is_none(), "{name}: a request was lost by the path itself: {wrong:?}");
        let tun = site.tun.as_ref().context("this site has a tun path")?;
        let c = &tun.counters;
        let [carried, lost, twice, late] =
            [&c.carried, &c.lost, &c.duplicated, &c.reordered].map(|n| n.load(Ordering::Relaxed));
        println!("{name}: {carried} packets, {lost} lost, {twice} duplicated, {late} reordered");
        ensure!(lost > 0 && twice > 0 && late > 0, "{name}: the path did nothing to its packets");
        Ok(closed)
    })
}

#[test]
fn lossy_path_per_request() -> Result<()> {
    lossy(false)
}

#[test]
fn lossy_path_keep_alive() -> Result<()> {
    lossy(true)
}

fn idle_http2(name: &str, hold: Duration, right: fn(&Request) -> bool) -> Result<()> {
    let nginx = NginxConf {
        http2: true,
        keepalive_timeout: 1,
        // The one that counts before the first stream.
        server_extra: "client_header_timeout 1s;".into(),
        ..NginxConf::default()
    };
    control(name, SiteConf { nginx, ..SiteConf::default() }, true, right, |site| {
        let mut conf = per_request(site, "/", 200);
        conf.target.set_port(81);
        conf.shape = Shape::IdleHttp2(hold);
        conf
    })
}

#[test]
fn idle_http2_closed_by_the_server() -> Result<()> {
    idle_http2("idle HTTP/2, closed by the server", Duration::from_secs(20), |r| {
        r.bytes_received > 0 && r.outcome == Outcome::NoRequest { closed_by_server: true }
    })
}

#[test]
fn idle_http2_closed_by_the_client() -> Result<()> {
    idle_http2("idle HTTP/2, closed by the client", Duration::from_millis(300), |r| {
        r.bytes_received > 0 && r.outcome == Outcome::NoRequest { closed_by_server: false }
    })
}

/// With `openssl s_client`: TLS 1.2, 1.2 resumed and 1.3, each with a request and idle until the server closes.
fn tls(name: &str, tickets: Tls) -> Result<()> {
    let nginx =
        NginxConf { tls: Some(tickets), server_extra: "client_header_timeout 1s;".into(), ..NginxConf::default() };
    measured(name, SiteConf { nginx, ..SiteConf::default() }, true, |site| {
        let client = format!("openssl s_client -quiet -ign_eof -connect {}:443", site.link.right4);
        let (session, closes) = (site.dir.join("session"), closes());
        let request = r"printf 'GET /static HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n'";
        let each = closes.div_ceil(6);
        let kinds = ["-tls1_2".to_string(), format!("-tls1_2 -sess_in {}", session.display()), "-tls1_3".into()];
        let mut script = format!("{request} | {client} -tls1_2 -sess_out {}\n", session.display());
        for kind in kinds {
            script +=
                &format!("seq {each} | xargs -P 8 -I@ sh -c \"{} | {client} {kind}\"\n", request.replace('\\', r"\\"));
            script += &format!("seq {each} | xargs -P 100 -I@ sh -c \"{client} {kind} </dev/null\"\n");
        }
        let mut spec = Spec::new(["sh", "-c", script.as_str()]);
        (spec.plain, spec.netns, spec.log) = (true, Some(site.client.path()), Some(site.dir.join("openssl.log")));
        Launched::start(&spec)?.wait(LIMIT)?;
        let served = site.nginx.accesses()?;
        let answered = served.iter().filter(|a| a.status == 200).count() as u64;
        println!("{name}: {answered} requests answered");
        ensure!(answered > 3 * each, "{name}: only {answered} TLS requests were answered");
        Ok(answered + 3 * each)
    })
}

#[test]
fn tls_with_tickets() -> Result<()> {
    tls("TLS with tickets", Tls::Tickets)
}

#[test]
fn tls_without_tickets() -> Result<()> {
    tls("TLS without tickets", Tls::NoTickets)
}
