//! A node with a bridge, pods on it, and a machine outside the cluster, each in a network namespace
//! of the test's own, which vanish with the threads and descriptors that hold them.
//!
//! As in the real network, a pod has a /32 address and reaches all through the bridge's address, and
//! its port of the bridge is in hairpin mode.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

/// The node, seen from pods and from outside.
pub const BRIDGE_IP: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
pub const OUTSIDE_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);
/// At which every pod tells its number and whom it sees, by TCP and UDP.
pub const POD_PORT: u16 = 8080;
/// For what must be answered, and for what must not.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(400);

/// Runs `work` on a thread in a node's network namespace.
pub fn on_a_node(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            ip("link set lo up");
            ip("link add cni0 type bridge");
            ip("addr add 10.42.0.1/24 dev cni0");
            ip("addr add fd42::1/64 dev cni0 nodad");
            ip("link set cni0 up");
            for (setting, value) in
                [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv4/conf/all/send_redirects", "0")]
            {
                std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap();
            }
            // The node itself needs a route to Services before they are rewritten.
            ip("route add default dev cni0");
            ip("route add fd43::/64 dev cni0");
            work();
        });
        node.join().unwrap();
    });
}

pub fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().expect("ip is missing: install Debian's iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `nft` says.
pub fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft is missing: install Debian's nftables");
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A machine of its own.
pub struct Machine {
    namespace: File,
}

impl Machine {
    fn new() -> Machine {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sender.send(File::open(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid())).unwrap()).unwrap();
        });
        let machine = Machine { namespace: receiver.recv().expect("a network namespace") };
        machine.inside(|| ip("link set lo up"));
        machine
    }

    /// How `ip` names its namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// A pod 10.42.0.N, fd42::N on the calling thread's node, which serves until the test ends.
    pub fn pod(number: u8) -> Machine {
        let pod = Machine::new();
        ip(&format!("link add veth{number} type veth peer name eth0 netns {}", pod.path()));
        ip(&format!("link set veth{number} master cni0"));
        ip(&format!("link set veth{number} type bridge_slave hairpin on"));
        ip(&format!("link set veth{number} up"));
        pod.inside(|| {
            ip("link set eth0 up");
            ip(&format!("addr add 10.42.0.{number}/32 dev eth0"));
            ip("route add 10.42.0.1 dev eth0 scope link");
            ip("route add default via 10.42.0.1 dev eth0");
            ip(&format!("addr add fd42::{number}/128 dev eth0 nodad"));
            ip("route add fd42::1 dev eth0");
            ip("route add default via fd42::1 dev eth0");
        });
        pod.serve(number);
        pod
    }

    /// A machine on a network with the node, which has a route to Services and other addresses there.
    pub fn outside() -> Machine {
        let outside = Machine::new();
        ip(&format!("link add uplink type veth peer name eth0 netns {}", outside.path()));
        ip(&format!("addr add {NODE_IP}/24 dev uplink"));
        ip("link set uplink up");
        outside.inside(|| {
            ip("link set eth0 up");
            ip(&format!("addr add {OUTSIDE_IP}/24 dev eth0"));
            ip(&format!("route add default via {NODE_IP} dev eth0"));
        });
        outside
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    fn serve(&self, number: u8) {
        let (tcp, udp) =
            self.inside(|| (TcpListener::bind(("::", POD_PORT)).unwrap(), UdpSocket::bind(("::", POD_PORT)).unwrap()));
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = write!(stream, "{number} sees {peer}");
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{number} sees {}", peer.ip().to_canonical()).as_bytes(), peer);
            }
        });
    }
}

/// What a TCP server says; a connection that nobody answers is `TimedOut`.
pub fn ask(address: impl Into<IpAddr>, port: u16) -> Result<String, ErrorKind> {
    ask_within(PATIENCE, SocketAddr::new(address.into(), port))
}

/// The same, for what is expected to be dropped.
pub fn knock(address: impl Into<IpAddr>, port: u16) -> Result<String, ErrorKind> {
    ask_within(SILENCE, SocketAddr::new(address.into(), port))
}

fn ask_within(patience: Duration, address: SocketAddr) -> Result<String, ErrorKind> {
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(|error| error.kind())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.kind())?;
    Ok(text)
}

/// A UDP client that keeps its port.
pub fn udp_client(address: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.into(), port);
    let socket = UdpSocket::bind((if address.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.connect(address).unwrap();
    socket
}

pub fn exchange(socket: &UdpSocket) -> Result<String, ErrorKind> {
    let mut buffer = [0; 64];
    socket.send(b"?").map_err(|error| error.kind())?;
    let length = socket.recv(&mut buffer).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// How often each pod answered.
pub fn count(requests: usize, mut ask: impl FnMut() -> Result<String, ErrorKind>) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let answer = ask().unwrap();
        *counts.entry(answer.split(' ').next().unwrap().parse().unwrap()).or_default() += 1;
    }
    counts
}
