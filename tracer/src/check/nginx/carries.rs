//! Ports whose connections are more than one HTTP/1.1 request after the other.

use super::facts::port;
use super::{Config, Directive};
use crate::model::input::Carries;

/// nginx as root, without any `listen`.
const HTTP: u16 = 80;

/// By port: what a server on it says. HTTP/2 comes first where a port has both.
pub fn carries(config: &Config) -> Vec<(u16, Carries)> {
    let mut found = Vec::new();
    for http in config.directives.iter().filter(|d| d.name == "http") {
        let inside = |d: &&Directive| d.name == "server" && d.block.is_some();
        for server in http.block.iter().flatten().filter(inside) {
            let block = || server.block.iter().flatten();
            let listens: Vec<&Directive> = block().filter(|d| d.name == "listen").collect();
            let mut ports: Vec<u16> = listens.iter().filter_map(|d| port(d.args.first()?)).collect();
            if listens.is_empty() {
                ports.push(HTTP);
            }
            let on = |d: &Directive| d.name == "http2" && d.args.first().is_some_and(|a| a == "on");
            if block().any(on) || http.block.iter().flatten().any(on) {
                found.extend(ports.iter().map(|port| (*port, Carries::Http2)));
            }
            // Before nginx 1.25 a parameter of the socket.
            let with = listens.iter().filter(|d| d.args.iter().skip(1).any(|a| a == "http2" || a == "spdy"));
            found.extend(with.filter_map(|d| Some((port(d.args.first()?)?, Carries::Http2))));
            let directly = http.block.iter().flatten().any(passes_upgrades);
            if directly || block().any(anywhere(passes_upgrades)) {
                found.extend(ports.iter().map(|port| (*port, Carries::Upgraded)));
            }
        }
    }
    found.sort_unstable();
    found.dedup_by_key(|(port, _)| *port);
    found
}

/// `proxy_set_header Upgrade $http_upgrade`: nginx passes an upgrade on when it was asked for one.
fn passes_upgrades(d: &Directive) -> bool {
    d.name == "proxy_set_header" && d.args.first().is_some_and(|name| name.eq_ignore_ascii_case("upgrade"))
}

/// Depth is bounded by the parser.
fn anywhere(what: fn(&Directive) -> bool) -> impl Fn(&Directive) -> bool {
    fn within(d: &Directive, what: fn(&Directive) -> bool) -> bool {
        what(d) || d.block.iter().flatten().any(|inner| within(inner, what))
    }
    move |d| within(d, what)
}

#[cfg(test)]
mod tests {
    use super::super::{Files, parse};
    use super::*;
    use crate::check::files::File;

    struct None_;

    impl Files for None_ {
        fn matching(&self, _: &str) -> Result<Vec<File>, String> {
            Ok(Vec::new())
        }
    }

    fn of(text: &str) -> Vec<(u16, Carries)> {
        carries(&parse("nginx.conf", text, &None_).unwrap())
    }

    #[test]
    fn by_port() {
        assert_eq!(of("http { server { listen 80; } server { } }"), []);
        let text = "http { server { listen 80; listen [::]:81 http2; } server { listen 82; http2 on; } }";
        assert_eq!(of(text), [(81, Carries::Http2), (82, Carries::Http2)]);
        assert_eq!(of("http { http2 on; server { } }"), [(80, Carries::Http2)]);
        assert_eq!(of("http { server { listen 80; http2 off; } }"), []);
        let upgrade = "location /ws { if ($a) { } proxy_set_header upgrade $http_upgrade; proxy_pass http://x; }";
        let text = format!("http {{ server {{ listen 1.2.3.4:8080; {upgrade} }} server {{ listen 8081; }} }}");
        assert_eq!(of(&text), [(8080, Carries::Upgraded)]);
        let text =
            "http { proxy_set_header Upgrade $http_upgrade; server { listen 8081; } server { listen unix:/x; } }";
        assert_eq!(of(text), [(8081, Carries::Upgraded)]);
    }
}
