//! One request, several layers: which records join the two ends of a connection, and that nothing weaker does.

use crate::evidence::{connection, recordings, run};
use why502::model::event::{Event, Side, TcpState, tcp};
use why502::model::{Cause, EventKind, Incident, Input};

fn recording(name: &str) -> Vec<Input> {
    recordings().into_iter().find(|(file, _)| file == name).unwrap().1
}

/// Of the pod behind the edge; what its nginx had of php-fpm is another connection.
fn at_pod(said: &[Incident]) -> Vec<&Incident> {
    said.iter().filter(|i| i.server.port == Some(80) && !i.cause.not_the_server()).collect()
}

fn known_by(said: &[Incident]) -> Vec<(Option<&str>, &str, bool)> {
    let of = |i: &&Incident| {
        let requester = &i.requester;
        (requester.known_by.clone(), requester.kind.clone(), requester.container.is_some())
    };
    let mut all: Vec<_> = at_pod(said).iter().map(of).collect();
    all.sort();
    all.dedup();
    let known = ["addresses", "sequence-numbers", "address-and-time"];
    let kinds = ["edge", "sidecar", "probe", "unknown"];
    let by = |id: &Option<String>| id.as_ref().and_then(|id| known.into_iter().find(|k| k == id));
    all.iter().map(|(k, kind, c)| (by(k), kinds.into_iter().find(|k| k == kind).unwrap(), *c)).collect()
}

/// Every record of a requesting end, changed or taken away.
fn ends(inputs: &[Input], change: impl Fn(&mut EventKind) -> bool) -> Vec<Input> {
    let mut left = inputs.to_vec();
    left.retain_mut(|input| match input {
        Input::Event(Event { kind, .. }) => {
            let end = match kind {
                EventKind::TcpState(s) => s.side == Side::Client,
                EventKind::ResetReceived(n) => n.side == Side::Client,
                _ => false,
            };
            !end || change(kind)
        }
        _ => true,
    });
    left
}

fn causes(said: &[Incident]) -> Vec<Cause> {
    at_pod(said).iter().map(|i| i.cause).collect()
}

#[test]
fn an_edge_is_found_behind_address_translation_by_its_numbers_only() {
    for (file, by) in [("edge-and-pod.rec", "addresses"), ("edge-masqueraded.rec", "sequence-numbers")] {
        let inputs = recording(file);
        let said = run(&inputs);
        assert_eq!(known_by(&said), [(Some(by), "edge", true)], "{file}");
        assert_eq!(at_pod(&said).len(), 10, "{file}");

        let without = run(&ends(&inputs, |_| false));
        assert_eq!(known_by(&without), [(None, "unknown", false)], "{file}: without any record of the edge");
        assert_eq!(causes(&without), causes(&said), "{file}: the edge's records decide no cause");

        // Another connection's: whatever its addresses are.
        let others = run(&ends(&inputs, |kind| {
            match kind {
                EventKind::TcpState(s) => s.snd_una = s.snd_una.wrapping_add(1),
                EventKind::ResetReceived(n) => n.first_sent = n.first_sent.map(|first| first.wrapping_add(1)),
                _ => {}
            }
            true
        }));
        assert_eq!(known_by(&others), [(None, "unknown", false)], "{file}: with other numbers");
        assert_eq!(causes(&others), causes(&said), "{file}");
    }
}

/// A record without numbers, as older recordings have them: linked where the addresses allow it, and never more.
#[test]
fn addresses_and_time_alone_name_nobody() {
    let strip = |kind: &mut EventKind| {
        if let EventKind::ResetReceived(n) = kind {
            (n.first_sent, n.first_received) = (None, None);
        }
        matches!(kind, EventKind::ResetReceived(_))
    };
    let said = run(&ends(&recording("edge-and-pod.rec"), strip));
    assert_eq!(known_by(&said), [(None, "unknown", false), (Some("address-and-time"), "unknown", false)]);
    let linked = at_pod(&said).into_iter().filter(|i| i.requester.known_by.is_some());
    for i in linked {
        let link = i.chain.iter().find(|l| l.rule == "beside-a-probable-requesting-end").unwrap();
        assert!(link.text.contains("probably"), "{i:#?}");
    }
    let masked = run(&ends(&recording("edge-masqueraded.rec"), strip));
    assert_eq!(known_by(&masked), [(None, "unknown", false)], "behind a masquerade not even the address is the same");
}

/// The edge was killed with the ends of its connections unread: six requests, six incidents, and they are the edge's.
#[test]
fn what_is_lost_in_both_layers_is_told_once() {
    let inputs = recording("edge-killed-with-its-pod.rec");
    let told = |inputs: &[Input]| run(inputs).iter().filter(|i| !i.cause.not_the_server()).count();
    assert_eq!(told(&inputs), 6);
    let unread = |i: &Input| match i {
        Input::Event(Event { kind: EventKind::TcpState(s), .. }) => closed_unread(s),
        _ => false,
    };
    let ends: Vec<usize> = (0..inputs.len()).filter(|n| unread(&inputs[*n])).collect();
    assert_eq!(ends.len(), 6, "the edge's ends, closed by its exit");
    for taken in &ends {
        let left: Vec<Input> = inputs.iter().enumerate().filter(|(n, _)| n != taken).map(|(_, i)| i.clone()).collect();
        assert_eq!(told(&left), 7, "without its record that one is told at both");
    }
    // The edge's own loss of one request is not seen: which one it was is not known, so none is left out.
    let said = run(&inputs);
    let first = said.iter().find(|i| i.cause == Cause::ContainerKilled).unwrap();
    let left: Vec<Input> = inputs
        .iter()
        .filter(|i| !matches!(i, Input::Event(e) if e.id.to_string() == first.chain[0].id))
        .cloned()
        .collect();
    let without = run(&left);
    assert!(without.iter().all(|i| connection(i) != connection(first)), "its loss is still told");
    assert_eq!(without.iter().filter(|i| !i.cause.not_the_server()).count(), 5 + 6);
}

fn closed_unread(s: &TcpState) -> bool {
    s.side == Side::Client && s.oldstate == tcp::CLOSE_WAIT && s.task.exiting()
}
