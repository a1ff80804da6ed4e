//! Pages for people. The front page lists what there is; what a stop's page shows is in the JSON of `/stops/ID`.

use super::answer::{self, Body};
use hyper::{Response, StatusCode};

const FRONT: &str = "\
why502

/metrics       Prometheus
/healthz       200 while the pipeline moves; what is wrong, as JSON
/readyz        200 once every lost request is seen
/incidents     lost requests, the newest 100: JSON, oldest first
/stops         terminations of containers, the same
/records       both, in the order in which they became final
/stops/ID      a stop with its incidents

Filters of the lists: namespace, pod, workload, cause (ids, with commas), stop, since, until (a time, or 10m ago)
Pages:                limit (1 to 1000), after=CURSOR forwards, before=CURSOR backwards
Streams:              follow=1: a JSON object a line; with `Accept: text/event-stream` as events with their cursors
";

pub(super) fn front() -> Response<Body> {
    answer::full(StatusCode::OK, "text/plain; charset=utf-8", FRONT.to_owned())
}
