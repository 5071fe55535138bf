//! Who has to make way for whom.

use scheduler::framework::Nomination;

use super::*;

fn ranked(name: &str, cpu: &str, priority: i32) -> Value {
    pod(name, cpu, json!({"spec": {"priority": priority}}))
}

/// The nominated node and the victims' names, or the message.
fn preempt(snapshot: &Snapshot, pod: Value) -> (String, Vec<String>) {
    let refusal = attempt(snapshot, pod).unwrap_err();
    match refusal.nomination {
        Nomination::Set { node, victims } => {
            let mut victims: Vec<String> = victims.iter().map(|pod| pod.name().to_owned()).collect();
            victims.sort();
            (snapshot.node(node).name.clone(), victims)
        }
        _ => (refusal.message, Vec::new()),
    }
}

#[test]
fn the_fewest_and_least_important_pods_go() {
    for (what, pods, cpu, expected) in [
        ("only as many as needed", vec![("a", ranked("x", "2", 1)), ("a", ranked("y", "1", 2))], "3", ("a", vec!["x"])),
        ("the least important", vec![("a", ranked("x", "4", 5)), ("b", ranked("y", "4", 4))], "1", ("b", vec!["y"])),
        (
            "the fewest",
            vec![("a", ranked("x", "2", 1)), ("a", ranked("y", "2", 1)), ("b", ranked("z", "4", 1))],
            "4",
            ("b", vec!["z"]),
        ),
    ] {
        let snapshot = snapshot(
            [node("a", json!({})), node("b", json!({}))].into_iter().take(if what.starts_with("only") { 1 } else { 2 }),
            pods,
        );
        let (node, victims) = preempt(&snapshot, ranked("p", cpu, 10));
        assert_eq!((node.as_str(), victims.iter().map(String::as_str).collect::<Vec<_>>()), expected, "{what}");
    }
}

#[test]
fn who_cannot_preempt_reads_why() {
    let full = |priority| snapshot([node("a", json!({}))], [("a", ranked("x", "4", priority))]);
    let insufficient = "0/1 nodes are available: 1 Insufficient cpu. preemption: ";
    let never = with(ranked("p", "1", 10), json!({"spec": {"preemptionPolicy": "Never"}}));
    for (snapshot, pod, reason) in [
        (full(10), ranked("p", "1", 10), "0/1 nodes are available: 1 No preemption victims found for incoming pod."),
        (full(1), ranked("p", "5", 10), "0/1 nodes are available: 1 Preemption is not helpful for scheduling."),
        (full(1), never, "not eligible due to preemptionPolicy=Never."),
    ] {
        assert_eq!(preempt(&snapshot, pod), (format!("{insufficient}{reason}"), vec![]));
    }
}

#[test]
fn victims_of_affinity_go_too() {
    let term = json!([{"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}]);
    let far = json!({"spec": {"priority": 10,
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    let labelled = with(ranked("x", "1", 1), json!({"metadata": {"labels": {"app": "x"}}}));
    let snapshot = snapshot([node("a", json!({}))], [("a", labelled), ("a", ranked("y", "1", 1))]);
    assert_eq!(preempt(&snapshot, pod("p", "1", far)), ("a".into(), vec!["x".into()]));
}

#[test]
fn budgets_turn_victims_elsewhere() {
    let labelled = |name: &str, app: &str| with(ranked(name, "4", 1), json!({"metadata": {"labels": {"app": app}}}));
    let mut snapshot = snapshot(
        [node("a", json!({})), node("b", json!({}))],
        [("a", labelled("x", "kept")), ("b", labelled("y", "free"))],
    );
    let budget = json!({"metadata": {"name": "b", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "kept"}}}, "status": {"disruptionsAllowed": 0}});
    snapshot.budgets.insert("default/b".into(), Arc::new(serde_json::from_value(budget).unwrap()));
    assert_eq!(preempt(&snapshot, ranked("p", "1", 10)).0, "b");
}

#[test]
fn nominated_room_is_kept_for_the_nominated() {
    let mut snapshot = snapshot([node("a", json!({}))], []);
    let waiting = json!({"status": {"nominatedNodeName": "a"}});
    let preemptor = with(ranked("p", "4", 10), waiting);
    snapshot.nominate("a", info(preemptor.clone()));
    let no = "0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!(outcome(&snapshot, ranked("replacement", "4", 1)), no);
    assert_eq!(outcome(&snapshot, ranked("equal", "4", 10)), no);
    assert_eq!(outcome(&snapshot, ranked("higher", "4", 11)), "a");
    assert_eq!(outcome(&snapshot, preemptor), "a");
    assert_eq!(snapshot.drop_nomination("p"), Some("a".into()));
    assert_eq!(outcome(&snapshot, ranked("replacement", "4", 1)), "a");
}
