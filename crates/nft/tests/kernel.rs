//! Against the kernel: what is encoded here is read back with the real `nft`, in a network
//! namespace of the test's own, and packets are treated accordingly.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use nft::expr::{self, Cmp, Ct, Meta, Numgen, Reject, Verdict};
use nft::{Batch, Chain, ChainType, Element, Error, Expr, Family, KeyType, Point, Set, Socket, Table};
use nix::sched::{CloneFlags, unshare};

/// Runs `work` in a fresh network namespace, with its loopback interface up.
fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            run("ip", &["link", "set", "lo", "up"]);
            work()
        });
        inside.join().unwrap()
    })
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} is missing ({error}): install Debian's nftables and iproute2"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn table() -> Table {
    Table::new(Family::Ipv4, "test")
}

fn l4(protocol: u8) -> [Expr; 2] {
    [expr::meta(Meta::L4Proto, 0), expr::cmp(Cmp::Eq, 0, &[protocol])]
}

#[test]
fn nft_reads_what_was_written() {
    let listing = isolated(|| {
        let table = table();
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(&Chain::base(&table, "prerouting", ChainType::Nat, Point::Prerouting, -100));
        batch.add_chain(&Chain::base(&table, "forward", ChainType::Filter, Point::Forward, 0));
        batch.add_chain(&Chain::regular(&table, "svc"));
        let services = Set::verdict_map(&table, "services", &[KeyType::Ipv4, KeyType::Protocol, KeyType::Port]);
        batch.add_set(&services);
        let affinity = Set::map(&table, "affinity", &[KeyType::Ipv4], &[KeyType::Ipv4, KeyType::Port])
            .timeout(Duration::from_secs(60));
        batch.add_set(&affinity);
        let key = Element::key(&[&[10, 43, 0, 1], &[6], &443u16.to_be_bytes()]).verdict(Verdict::Goto("svc".into()));
        batch.add_elements(&services, [&key]);
        batch.add_rule(
            &table,
            "prerouting",
            &[expr::ip_daddr(0), expr::meta(Meta::L4Proto, 1), expr::th_dport(2), expr::lookup_verdict(&services, 0)],
        );
        let endpoints = Set::anonymous_map(&mut batch, &table, &[KeyType::Integer], &[KeyType::Ipv4, KeyType::Port]);
        batch.add_set(&endpoints);
        let endpoint = |number: u32, last: u8| {
            Element::key(&[&number.to_ne_bytes()]).value(&[&[10, 42, 0, last], &8080u16.to_be_bytes()])
        };
        batch.add_elements(&endpoints, [&endpoint(0, 2), &endpoint(1, 3)]);
        let mut rule = l4(6).to_vec();
        rule.extend([
            expr::numgen(Numgen::Random, 2, 0),
            expr::lookup_map(&endpoints, 0, 4),
            expr::dnat(Family::Ipv4, 4, Some(5)),
        ]);
        batch.add_rule(&table, "svc", &rule);
        batch.add_rule(
            &table,
            "forward",
            &[
                expr::ct(Ct::State, 0),
                expr::bitwise(0, 0, &expr::ct_state::NEW.to_ne_bytes(), &[0; 4]),
                expr::cmp(Cmp::Neq, 0, &[0; 4]),
                expr::counter(),
                expr::reject(Family::Ipv4, Reject::PortUnreachable),
            ],
        );
        let mut socket = Socket::open().unwrap();
        socket.commit(&batch).unwrap();
        assert_eq!(socket.tables(Family::Ipv4).unwrap(), ["test"]);
        assert_eq!(socket.chains(&table).unwrap(), ["prerouting", "forward", "svc"]);
        let listing = run("nft", &["list", "ruleset"]);
        let mut removal = Batch::new();
        removal.delete_table(&table);
        removal.delete_table(&Table::new(Family::Ipv4, "never-there"));
        socket.commit(&removal).unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        listing
    });
    let squeezed = listing.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "table ip test {",
        "map services { type ipv4_addr . inet_proto . inet_service : verdict elements = { 10.43.0.1 . tcp . 443 : goto svc } }",
        "map affinity { type ipv4_addr : ipv4_addr . inet_service size 65535 flags dynamic,timeout timeout 1m }",
        "type nat hook prerouting priority dstnat; policy accept;",
        "ip daddr . meta l4proto . th dport vmap @services",
        "dnat ip to numgen random mod 2 map { 0 : 10.42.0.2 . 8080, 1 : 10.42.0.3 . 8080 }",
        "ct state new counter packets 0 bytes 0 reject",
    ] {
        assert!(squeezed.contains(expected), "{expected:?} is not in\n{listing}");
    }
}

#[test]
fn packets_are_rewritten() {
    isolated(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::scope(|scope| {
            scope.spawn(|| listener.accept().unwrap().0.write_all(b"served").unwrap());
            let table = table();
            let mut batch = Batch::new();
            batch.add_table(&table);
            batch.add_chain(&Chain::base(&table, "output", ChainType::Nat, Point::Output, -100));
            batch.add_rule(
                &table,
                "output",
                &[
                    expr::ip_daddr(0),
                    expr::cmp(Cmp::Eq, 0, &[127, 1, 2, 3]),
                    expr::load_address(0, Ipv4Addr::LOCALHOST.into()),
                    expr::load(1, &port.to_be_bytes()),
                    expr::dnat(Family::Ipv4, 0, Some(1)),
                ],
            );
            Socket::open().unwrap().commit(&batch).unwrap();
            let mut text = String::new();
            TcpStream::connect((Ipv4Addr::new(127, 1, 2, 3), 80)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "served");
        });
    });
}

#[test]
fn a_refused_batch_names_the_object_and_changes_nothing() {
    isolated(|| {
        let table = table();
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.delete_chain(&table, "absent");
        let mut socket = Socket::open().unwrap();
        let error = socket.commit(&batch).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }));
        assert_eq!(
            error.to_string(),
            "nf_tables: delete chain absent of table test: No such file or directory (os error 2)"
        );
        assert_eq!(socket.tables(Family::Ipv4).unwrap(), [""; 0]);
        // The socket is usable after a failure.
        let mut batch = Batch::new();
        batch.add_table(&table);
        socket.commit(&batch).unwrap();
    });
}

#[test]
fn ten_thousand_elements_fit_one_batch() {
    isolated(|| {
        let table = table();
        let set = Set::new(&table, "addresses", &[KeyType::Ipv4]);
        let elements: Vec<Element> =
            (0..10_000u32).map(|n| Element::key(&[&(0x0a00_0000 + n).to_be_bytes()])).collect();
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_set(&set);
        batch.add_elements(&set, &elements);
        Socket::open().unwrap().commit(&batch).unwrap();
        let listing = run("nft", &["list", "set", "ip", "test", "addresses"]);
        assert_eq!(listing.matches("10.0.").count(), 10_000);
        let mut batch = Batch::new();
        batch.delete_elements(&set, &elements[1..]);
        Socket::open().unwrap().commit(&batch).unwrap();
        assert_eq!(run("nft", &["list", "set", "ip", "test", "addresses"]).matches("10.0.").count(), 1);
    });
}
