//! Forwarding of names outside the cluster to the node's own nameservers, byte for byte.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// A nameserver that has not answered by then is passed over.
const PATIENCE: Duration = Duration::from_secs(2);
/// As many as the C library asks.
const MAX_SERVERS: usize = 3;

#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    Udp,
    Tcp,
}

pub struct Forwarder {
    servers: Vec<SocketAddr>,
}

impl Forwarder {
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Forwarder { servers }
    }

    /// The file's nameservers, without ourselves: a query must not go round in circles.
    pub fn from_resolv_conf(path: &Path, own: Ipv4Addr) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let servers = nameservers(&text).filter(|server| *server != IpAddr::V4(own));
        Forwarder::new(servers.take(MAX_SERVERS).map(|server| SocketAddr::new(server, 53)).collect())
    }

    /// Forwards with the protocol that the query came by.
    pub async fn forward(&self, query: &[u8], protocol: Protocol) -> Vec<u8> {
        for server in &self.servers {
            let ask = async {
                match protocol {
                    Protocol::Udp => udp(*server, query).await,
                    Protocol::Tcp => tcp(*server, query).await,
                }
            };
            match tokio::time::timeout(PATIENCE, ask).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => tracing::debug!(%server, "nameserver failed: {error}"),
                Err(_) => tracing::debug!(%server, "nameserver did not answer in time"),
            }
        }
        failure(query)
    }
}

async fn udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(SocketAddr::new(unspecified(server), 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Anything but the answer to this query is a stranger's.
        if answer[..length].first_chunk::<2>() == query.first_chunk::<2>() {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(query.len() as u16).await?;
    stream.write_all(query).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

fn failure(query: &[u8]) -> Vec<u8> {
    let Ok(request) = Message::from_vec(query) else { return Vec::new() };
    let mut message = Message::error_msg(request.metadata.id, request.metadata.op_code, ResponseCode::ServFail);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.queries = request.queries;
    message.to_vec().unwrap_or_default()
}

fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# comment\nsearch a b\nnameserver 192.0.2.1\n nameserver  2001:db8::1\nnameserver nonsense\n";
        let found: Vec<String> = nameservers(text).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["192.0.2.1", "2001:db8::1"]);
    }

    #[tokio::test]
    async fn a_dead_server_is_passed_over() {
        let alive = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let unused = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let forwarder = Forwarder::new(vec![unused.local_addr().unwrap(), alive.local_addr().unwrap()]);
        drop(unused);
        tokio::spawn(async move {
            let mut query = [0; 100];
            let (length, peer) = alive.recv_from(&mut query).await.unwrap();
            alive.send_to(b"a stranger's", peer).await.unwrap();
            alive.send_to(&query[..length], peer).await.unwrap();
        });
        let query = Message::query().to_vec().unwrap();
        assert_eq!(forwarder.forward(&query, Protocol::Udp).await, query);
    }
}
