use super::super::files::NoFiles;
use super::*;
use crate::model::place::At;
use proptest::prelude::*;

fn config(text: &str) -> Config {
    parse("nginx.conf", text, &NoFiles).unwrap()
}

fn facts(text: &str) -> Facts {
    Facts::read("nginx.conf", text, &NoFiles).unwrap()
}

fn error(text: &str) -> String {
    parse("nginx.conf", text, &NoFiles).unwrap_err().to_string()
}

#[test]
fn words_and_quotes() {
    let c = config("a \"b;{ c\" 'd\"' e\\;f ${x}y;# } \"\ng{h i;}");
    let all: Vec<(&str, &[String])> = c.directives.iter().map(|d| (d.name.as_str(), &d.args[..])).collect();
    assert_eq!(all[0].0, "a");
    assert_eq!(all[0].1, ["b;{ c", "d\"", "e\\;f", "${x}y"]);
    assert_eq!(all[1].0, "g");
    let inner = c.directives[1].block.as_ref().unwrap();
    assert_eq!((inner[0].name.as_str(), inner[0].line), ("h", 2));
}

#[test]
fn errors_have_a_line() {
    for (text, wanted) in [
        ("a;\nb {\n", "nginx.conf:2: unexpected end of the file, block \"b\" is not closed"),
        ("a;\n}\n", "nginx.conf:2: unexpected \"}\""),
        ("a b\n", "nginx.conf:1: unexpected the end of the file, \";\" is missing after \"a\""),
        ("a {\nb }", "nginx.conf:2: unexpected \"}\", \";\" is missing after \"b\""),
        ("a \"b", "nginx.conf:1: the quote \" is not closed"),
        ("a \"b\"c;", "nginx.conf:1: unexpected 'c' after a quote"),
        (";", "nginx.conf:1: unexpected \";\""),
        ("{}", "nginx.conf:1: unexpected \"{\""),
        ("x_by_lua_block { if {", "nginx.conf:1: the block of Lua is not closed"),
    ] {
        assert_eq!(error(text), wanted, "{text}");
    }
    let deep = "a {".repeat(100);
    assert!(error(&deep).contains("blocks within blocks"), "{}", error(&deep));
    let bad = Facts::read("x", "worker_shutdown_timeout soon;", &NoFiles).unwrap_err();
    assert_eq!(bad.to_string(), "x:1: worker_shutdown_timeout \"soon\" is not a time");
}

#[test]
fn lua_is_passed_over() {
    let text =
        "location / { content_by_lua_block { local a = { '}' } -- }\n x = [==[ }}] ]=] ]==] --[[ } ]] } deny all; }";
    let c = config(text);
    let inner = c.directives[0].block.as_ref().unwrap();
    assert_eq!(inner.len(), 2);
    assert_eq!((inner[1].name.as_str(), inner[1].line), ("deny", 2));
}

#[test]
fn times() {
    for (text, ms) in [
        ("30", Some(30_000)),
        ("1m30s", Some(90_000)),
        ("500ms", Some(500)),
        ("1h 1m", Some(3_660_000)),
        ("1M", Some(2_592_000_000)),
        ("", None),
        ("s", None),
        ("1x", None),
        ("99999999999999999999", None),
        ("9999999999999999999y", None),
    ] {
        assert_eq!(milliseconds(text, 1000), ms, "{text}");
    }
}

const DUMP: &str = "\
nginx: the configuration file /etc/nginx/nginx.conf syntax is ok
nginx: configuration file /etc/nginx/nginx.conf test is successful
# configuration file /etc/nginx/nginx.conf:
http {
  keepalive_timeout 65;
  include conf.d/*.conf;
  include mime.types;
}
# configuration file /etc/nginx/conf.d/a.conf:
server { listen 80; keepalive_timeout 5s; location / { fastcgi_pass unix:/run/php.sock; fastcgi_read_timeout 2m; } }
# configuration file /etc/nginx/conf.d/b.conf:

server { location / { proxy_pass http://app; } }
";

#[test]
fn a_dump_has_its_includes() {
    let c = parse("-", DUMP, &NoFiles).unwrap();
    assert_eq!(c.files, ["/etc/nginx/nginx.conf", "/etc/nginx/conf.d/a.conf", "/etc/nginx/conf.d/b.conf"]);
    assert_eq!(c.missing.len(), 1);
    let f = Facts::read("-", DUMP, &NoFiles).unwrap();
    let idle: Vec<(u64, String)> =
        f.idle.iter().map(|i| (i.seconds.value, i.seconds.at.as_ref().unwrap().to_string())).collect();
    assert_eq!(idle, [(5, "/etc/nginx/conf.d/a.conf:1".into()), (65, "/etc/nginx/nginx.conf:2".into())]);
    let silence = f.upstream_silence.unwrap();
    assert_eq!((silence.value, silence.at.unwrap().to_string()), (120, "/etc/nginx/conf.d/a.conf:1".into()));
    assert_eq!(f.fastcgi[0].value, "unix:/run/php.sock");
    assert_eq!(f.missing, ["/etc/nginx/mime.types"]);
}

#[test]
fn what_is_inherited_and_what_is_default() {
    let f = facts("http { server { listen 80; } }");
    assert_eq!(f.idle, [Idle { seconds: At::default_of(75) }]);
    assert!(f.serves && f.upstream_silence.is_none() && f.worker_shutdown_timeout.is_none());
    // Not a server's own one: the server has another.
    let f = facts("http { keepalive_timeout 3; server { keepalive_timeout 80; location / { keepalive_timeout 0; } } }");
    let idle: Vec<u64> = f.idle.iter().map(|i| i.seconds.value).collect();
    assert_eq!(idle, [80, 0]);
    let f = facts("worker_shutdown_timeout 1500ms; server { location ~ \\.php$ { fastcgi_pass php:9000; } }");
    assert_eq!(f.worker_shutdown_timeout.unwrap().value, 1500);
    assert_eq!(f.upstream_silence.unwrap().value, 60);
}

#[test]
fn where_it_listens_and_what_of_the_pod_it_passes_to() {
    let f = facts(
        "http { upstream app { server 127.0.0.1:8080 weight=2; server 10.0.0.7:81; } upstream other { server db; }
         server { listen 80; listen [::]:443 ssl; listen unix:/run/x; location / { proxy_pass http://app/; }
           location /b { if ($a) { proxy_pass http://localhost:9001; } } }
         server { listen 127.0.0.1:8081; location / { proxy_pass http://127.0.0.1; } location /c { proxy_pass http://[::1]:82/x; } }
         server { location / { proxy_pass http://$host; } location /d { proxy_pass http://other; } location /e { proxy_pass http://127.example:83; } } }",
    );
    assert_eq!(f.listens, [80, 443, 8081]);
    let passes: Vec<(u16, Option<u32>)> = f.passes.iter().map(|p| (p.value, p.at.as_ref().unwrap().line)).collect();
    assert_eq!(passes, [(8080, Some(2)), (9001, Some(3)), (80, Some(4)), (82, Some(4))]);
}

/// A file that includes itself.
struct Loop;
impl Files for Loop {
    fn matching(&self, pattern: &str) -> Result<Vec<File>, String> {
        Ok(vec![File::new(pattern, "include x;")])
    }
}

#[test]
fn includes_end() {
    let error = parse("nginx.conf", "include x;", &Loop).unwrap_err();
    assert!(error.what.contains("includes within includes"), "{error}");
}

proptest! {
    #[test]
    fn any_text(text in "\\PC*", odd in "[a-z{};\"'#\\\\$\n \\[\\]=-]{0,120}") {
        for text in [text, odd.clone(), format!("x_by_lua_block {{{odd}")] {
            if let Ok(config) = parse("f", &text, &NoFiles) {
                let _ = Facts::of(&config);
            }
            let _ = parse("f", &format!("# configuration file /a:\n{text}"), &NoFiles);
            let _ = milliseconds(&text, 1000);
        }
    }

    #[test]
    fn what_is_written_is_read(name in "[a-z_]{1,10}", args in proptest::collection::vec("[a-zA-Z0-9/.:*]{1,8}", 0..4)) {
        prop_assume!(name != "include" && !name.ends_with("_by_lua_block"));
        let text = format!("{name} {};\n{name} {{ {name} {}; }}", args.join(" "), args.join("\t"));
        let c = config(&text);
        prop_assert_eq!(&c.directives[0].args, &args);
        prop_assert_eq!(&c.directives[1].block.as_ref().unwrap()[0].args, &args);
    }
}
