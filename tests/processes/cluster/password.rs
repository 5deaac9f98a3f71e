//! Authentication of clients and peers.

use crate::common::client::{Line, Resp};
use crate::common::cluster::Cluster;
use crate::common::{SOON, alone, eventually};

#[test]
fn without_the_password_a_client_gets_nothing() {
    let _alone = alone();
    let mut cluster = Cluster::new(3, &[]);
    for node in &mut cluster.nodes {
        node.password = Some("open sesame".into());
    }
    cluster.start_all();
    cluster.wait_until_ready();
    for node in &cluster.nodes {
        node.resp().set("k", "v");
        let mut stranger = Resp::connect(node.port).unwrap();
        for words in [&["GET", "k"][..], &["SET", "k", "w"], &["LEADER"], &["INFO"], &["KEYS", "*"]]
        {
            let reply = stranger.call(words).unwrap();
            assert!(
                reply.error().is_some_and(|e| e.starts_with("NOAUTH ")),
                "{words:?}: {reply:?}"
            );
        }
        let reply = stranger.call(&["AUTH", "wrong"]).unwrap();
        assert!(reply.error().is_some_and(|e| e.starts_with("WRONGPASS ")), "{reply:?}");
        assert!(stranger.call(&["AUTH", "open sesame"]).unwrap().is_ok());
        assert_eq!(stranger.get("k").as_deref(), Some("v"));
        let mut line = Line::connect(node.port).unwrap();
        assert!(line.ask("GET k").unwrap().contains("Authentication required"));
        assert!(!node.log().contains("open sesame"), "the log shows the password");
    }
}

/// Starts the last of three nodes as a stranger, by `estrange`, and expects its refusal. Then
/// restarts it with the right settings, and expects a complete cluster.
fn turned_away(reason: &str, mut cluster: Cluster, estrange: impl Fn(&mut Cluster)) {
    let mut strange = Cluster::new(0, &[]);
    estrange(&mut cluster);
    strange.nodes.extend(cluster.nodes.pop());
    cluster.start_all();
    strange.start_all();
    // A cluster is founded by all its members or not at all, so no write can succeed yet.
    let (members, stranger) = (&cluster.nodes, &strange.nodes[0]);
    for node in members {
        eventually("members log why they refuse the stranger", SOON, || {
            node.log().contains(reason).then_some(())
        });
    }
    eventually("the stranger logs why it is refused", SOON, || {
        stranger.log().contains(reason).then_some(())
    });
    for node in members.iter().chain([stranger]) {
        let reply = node.resp().call(&["SET", "k", "v"]).unwrap();
        assert!(reply.error().is_some(), "{}: {reply:?}", node.port);
    }
    strange.nodes[0].stop();
    strange.nodes[0].password = cluster.nodes[0].password.clone();
    strange.nodes[0].flags = cluster.nodes[0].flags.clone();
    std::fs::remove_dir_all(&strange.nodes[0].dir).unwrap();
    cluster.nodes.append(&mut strange.nodes);
    cluster.start_all();
    cluster.wait_until_ready();
}

#[test]
fn a_node_with_another_password_is_turned_away() {
    let _alone = alone();
    let mut cluster = Cluster::new(3, &[]);
    for node in &mut cluster.nodes {
        node.password = Some("open sesame".into());
    }
    turned_away("another password", cluster, |cluster| {
        cluster.nodes[2].password = Some("open barley".into());
    });
}

#[test]
fn a_node_of_another_cluster_is_turned_away() {
    let _alone = alone();
    let cluster = Cluster::new(3, &["--cluster", "ours"]);
    turned_away("another cluster", cluster, |cluster| {
        cluster.nodes[2].flags = vec!["--cluster".into(), "theirs".into()];
    });
}
