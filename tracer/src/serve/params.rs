//! What stands after the `?`.

use crate::page::Filter;
use crate::store::query::{Kind, Query, causes, limit, moment};
use percent_encoding::percent_decode_str;
use std::collections::BTreeSet;

/// Bytes of one value.
const VALUE: usize = 1024;

const KNOWN: &str = "id, namespace, pod, workload, cause, stop, since, until, after, before, limit, follow";

/// A request's wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) query: Query,
    pub(super) follow: bool,
}

/// The error says what to do.
pub(super) fn parse(kind: Kind, text: &str, now_wall_ns: i64) -> Result<Params, String> {
    let mut params = Params { query: Query { kind, ..Query::default() }, follow: false };
    let mut seen = BTreeSet::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        if !seen.insert(name.clone()) {
            return Err(format!("{name} is given twice"));
        }
        let say = |why: String| format!("{name}: {why}");
        let number = || value.parse().map_err(|_| format!("{name}: {value:?} is no cursor of an earlier answer"));
        let query = &mut params.query;
        match &*name {
            "namespace" => query.namespace = Some(value),
            "pod" => query.pod = Some(value),
            "workload" => query.workload = Some(value),
            "id" => query.id = Some(value),
            "stop" => query.stop = Some(value),
            "cause" => query.causes = causes(&value).map_err(say)?,
            "since" => query.since = Some(moment(&value, now_wall_ns).map_err(say)?),
            "until" => query.until = Some(moment(&value, now_wall_ns).map_err(say)?),
            "after" => query.after = Some(number()?),
            "before" => query.before = Some(number()?),
            "limit" => query.limit = Some(limit(&value).map_err(say)?),
            "follow" => {
                params.follow = match &*value {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => return Err(format!("follow: {value:?} is neither 1 nor 0")),
                }
            }
            _ => return Err(format!("{name:?} is not known; there are {KNOWN}")),
        }
    }
    if params.follow && (params.query.limit.is_some() || params.query.before.is_some()) {
        return Err("follow has no end: limit and before do not go with it".into());
    }
    Ok(params)
}

/// What the page's form says, as it is shown again, and what that asks for. Fields that were left empty say nothing.
pub(super) fn form(text: &str, now_wall_ns: i64) -> (Filter, Result<Query, String>) {
    let mut filter = Filter::default();
    let mut kept: Vec<&str> = Vec::new();
    for pair in text.split('&') {
        let Some((name, value)) = pair.split_once('=').filter(|(_, value)| !value.is_empty()) else { continue };
        // What cannot be decoded is told below.
        let shown = decode(value).unwrap_or_default();
        let field = match name {
            "kind" => {
                filter.kind = shown;
                continue;
            }
            "namespace" => &mut filter.namespace,
            "pod" => &mut filter.pod,
            "workload" => &mut filter.workload,
            "cause" => &mut filter.cause,
            "since" => &mut filter.since,
            "until" => &mut filter.until,
            _ => {
                kept.push(pair);
                continue;
            }
        };
        *field = shown;
        kept.push(pair);
    }
    let query = match &*filter.kind {
        "" | "all" => parse(Kind::All, &kept.join("&"), now_wall_ns),
        "incidents" => parse(Kind::Incidents, &kept.join("&"), now_wall_ns),
        "stops" => parse(Kind::Stops, &kept.join("&"), now_wall_ns),
        other => Err(format!("kind: {other:?} is none of all, incidents, stops")),
    };
    let query = query.and_then(|params| match params {
        Params { follow: true, .. } => Err("follow is for /incidents, /stops and /records".into()),
        Params { query, .. } => Ok(query),
    });
    (filter, query)
}

fn decode(text: &str) -> Result<String, String> {
    let spaced = text.replace('+', " ");
    let text = percent_decode_str(&spaced).decode_utf8().map_err(|_| format!("{spaced:?} is no UTF-8"))?;
    if text.len() > VALUE {
        return Err(format!("a value is longer than {VALUE} bytes"));
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<Params, String> {
        parse(Kind::Incidents, text, 1_795_356_202_118_204_113)
    }

    #[test]
    fn what_is_asked() {
        assert_eq!(parsed("").unwrap().query, Query { kind: Kind::Incidents, ..Query::default() });
        let params =
            parsed("namespace=shop&workload=Deployment%2Fweb&cause=endpoint-race,unexplained&limit=5&after=17");
        let query = params.unwrap().query;
        assert_eq!(query.workload.as_deref(), Some("Deployment/web"));
        assert_eq!((query.causes.len(), query.limit, query.after), (2, Some(5), Some(17)));
        assert!(parsed("follow=1&since=10m").unwrap().follow);
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        for (text, says) in [
            ("causes=x", "there are id, namespace"),
            ("cause=x", "keepalive-race"),
            ("limit=0", "from 1 to 1000"),
            ("limit=1&limit=2", "twice"),
            ("since=tomorrow", "10m"),
            ("after=-1", "cursor"),
            ("follow=yes", "neither 1 nor 0"),
            ("follow=1&limit=3", "no end"),
            ("pod=%ff", "UTF-8"),
            (&format!("pod={}", "x".repeat(2000)), "longer"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_form_with_empty_fields() {
        let (filter, query) = form("kind=stops&namespace=&pod=a+b&cause=&since=nonsense", 0);
        assert_eq!((&*filter.kind, &*filter.pod, &*filter.since), ("stops", "a b", "nonsense"));
        assert!(query.unwrap_err().contains("since"), "what is wrong is told");
        let (_, query) = form("kind=stops&namespace=&pod=a+b&before=7", 0);
        let wanted = Query { kind: Kind::Stops, pod: Some("a b".into()), before: Some(7), ..Query::default() };
        assert_eq!(query, Ok(wanted));
        assert!(form("kind=nonsense", 0).1.is_err() && form("follow=1", 0).1.is_err());
    }

    proptest! {
        #[test]
        fn anything_is_borne(text in any::<String>()) {
            let _ = parsed(&text);
            let _ = form(&text, 0);
        }
    }
}
