//! The sockets: UDP datagrams and length-prefixed TCP messages in, answers out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::forward::{Forwarder, Protocol};
use crate::zone::{Answer, Lookup, Zone};

/// Queries being forwarded and TCP connections at once; more are dropped, and clients ask again.
const MAX_PENDING: usize = 1024;
/// Largest UDP answer to a client that does not say more (RFC 1035).
const PLAIN_UDP_BYTES: u16 = 512;
/// Largest UDP answer at all, below any MTU (the DNS flag day's value).
const MAX_UDP_BYTES: u16 = 1232;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// How far aliases of ExternalName Services are followed within the cluster.
const MAX_ALIASES: usize = 8;

pub struct Server {
    pub zone: Arc<RwLock<Zone>>,
    pub forwarder: Forwarder,
}

/// Hands bound sockets to the executor.
pub fn sockets(udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> anyhow::Result<(Arc<UdpSocket>, TcpListener)> {
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let udp = UdpSocket::from_std(udp).context("DNS UDP socket")?;
    Ok((Arc::new(udp), TcpListener::from_std(tcp).context("DNS TCP socket")?))
}

impl Server {
    pub async fn serve_udp(self: &Arc<Self>, socket: Arc<UdpSocket>) -> anyhow::Result<()> {
        let pending = Arc::new(Semaphore::new(MAX_PENDING));
        let mut buffer = vec![0; 4096];
        loop {
            // Errors of single datagrams (an earlier answer bounced) do not concern the others.
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
            match self.local(&buffer[..length]) {
                Local::Answered(message, limit) if !leads_away(&message) => {
                    send(&socket, encode(message, Some(limit)), peer).await;
                }
                Local::Ignore => {}
                asked => {
                    let Ok(permit) = pending.clone().try_acquire_owned() else { continue };
                    let (server, socket) = (self.clone(), socket.clone());
                    tokio::spawn(async move {
                        send(&socket, server.ask_others(asked, Protocol::Udp).await, peer).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener) -> anyhow::Result<()> {
        let pending = Arc::new(Semaphore::new(MAX_PENDING));
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let Ok(permit) = pending.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                // A client that hangs up in the middle is its own affair.
                let _ = server.connection(stream).await;
                drop(permit);
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
            let mut query = vec![0; usize::from(length)];
            tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut query)).await??;
            let answer = match self.local(&query) {
                Local::Ignore => return Ok(()),
                asked => self.ask_others(asked, Protocol::Tcp).await,
            };
            let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
            framed.extend(answer);
            stream.write_all(&framed).await?;
        }
    }

    /// Forwards what is not ours: the query, or the name outside that an alias stands for.
    async fn ask_others(&self, asked: Local, protocol: Protocol) -> Vec<u8> {
        let (mut message, limit) = match asked {
            Local::Ignore => return Vec::new(),
            Local::Forward(query) => return self.forwarder.forward(&query, protocol).await,
            Local::Answered(message, limit) => (message, limit),
        };
        if let (Some(RData::CNAME(target)), [query]) =
            (message.answers.last().map(|last| &last.data), &message.queries[..])
            && leads_away(&message)
        {
            let mut further = Message::query();
            further.metadata.recursion_desired = true;
            further.add_query(Query::query(target.0.clone(), query.query_type()));
            let answer = self.forwarder.forward(&further.to_vec().unwrap_or_default(), protocol).await;
            // Who resolves for a program does not ask again: the addresses must come with the alias, if there are any.
            message.answers.extend(Message::from_vec(&answer).map(|answer| answer.answers).unwrap_or_default());
        }
        encode(message, matches!(protocol, Protocol::Udp).then_some(limit))
    }

    fn local(&self, bytes: &[u8]) -> Local {
        let Ok(request) = Message::from_vec(bytes) else {
            let Some(id) = bytes.first_chunk::<2>().filter(|_| bytes.len() >= 12) else { return Local::Ignore };
            let id = u16::from_be_bytes(*id);
            return Local::Answered(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), PLAIN_UDP_BYTES);
        };
        if request.metadata.message_type != MessageType::Query {
            return Local::Ignore;
        }
        let limit = request
            .edns
            .as_ref()
            .map_or(PLAIN_UDP_BYTES, |edns| edns.max_payload().clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES));
        let [query] = &request.queries[..] else {
            return Local::Answered(
                reply(&request, Answer { code: ResponseCode::FormErr, ..Answer::default() }),
                limit,
            );
        };
        if request.metadata.op_code != OpCode::Query || query.query_class() != DNSClass::IN {
            return Local::Answered(reply(&request, Answer { code: ResponseCode::NotImp, ..Answer::default() }), limit);
        }
        match self.resolve(query) {
            Lookup::Answered(answer) => Local::Answered(reply(&request, answer), limit),
            Lookup::Forward => Local::Forward(bytes.to_vec()),
        }
    }

    /// Looks up, following aliases as long as they stay in the cluster.
    fn resolve(&self, query: &Query) -> Lookup {
        let zone = self.zone.read();
        let mut result = match zone.lookup(query.name(), query.query_type()) {
            Lookup::Answered(answer) => answer,
            Lookup::Forward => return Lookup::Forward,
        };
        for _ in 0..MAX_ALIASES {
            let target = match result.answers.last().map(|record| &record.data) {
                Some(RData::CNAME(target)) if query.query_type() != RecordType::CNAME => target.0.clone(),
                _ => break,
            };
            let Lookup::Answered(next) = zone.lookup(&target, query.query_type()) else { break };
            if next.answers.is_empty() {
                break;
            }
            result.answers.extend(next.answers);
        }
        Lookup::Answered(result)
    }
}

/// Whether the answer ends in an alias that nobody asked for as such.
fn leads_away(message: &Message) -> bool {
    let alias = message.answers.last().is_some_and(|last| matches!(last.data, RData::CNAME(_)));
    alias && message.queries.iter().all(|query| query.query_type() != RecordType::CNAME)
}

enum Local {
    /// With the most bytes it may have over UDP.
    Answered(Message, u16),
    Forward(Vec<u8>),
    Ignore,
}

fn reply(request: &Message, answer: Answer) -> Message {
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = true;
    message.metadata.response_code = answer.code;
    message.queries = request.queries.clone();
    message.answers = answer.answers;
    message.authorities = answer.authorities;
    message.additionals = answer.additionals;
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_BYTES);
        message.set_edns(edns);
    }
    message
}

/// Encoded; over UDP, an answer too long becomes an empty truncated one, and the client asks by TCP.
fn encode(message: Message, limit: Option<u16>) -> Vec<u8> {
    let bytes = message.to_vec().unwrap_or_default();
    match limit {
        Some(limit) if bytes.len() > usize::from(limit) => message.truncate().to_vec().unwrap_or_default(),
        _ => bytes,
    }
}

async fn send(socket: &UdpSocket, answer: Vec<u8>, peer: SocketAddr) {
    if !answer.is_empty() {
        // A client that has gone needs no answer.
        let _ = socket.send_to(&answer, peer).await;
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::rr::Name;

    use super::*;
    use crate::zone::{Endpoint, Kind, Service};

    async fn server() -> (SocketAddr, Arc<Server>) {
        let mut zone = Zone::new("cluster.local").unwrap();
        zone.set("a", "one", Some(Service { kind: Kind::Cluster(vec![[10, 43, 0, 9].into()]), ports: vec![] }));
        let endpoint = |n: u32| Endpoint {
            address: std::net::Ipv4Addr::from_bits(0x0a2a_0000 + n).into(),
            hostname: None,
            ports: vec![],
        };
        zone.set("a", "many", Some(Service { kind: Kind::Headless((0..200).map(endpoint).collect()), ports: vec![] }));
        zone.set("a", "alias", Some(Service { kind: Kind::External("one.a.svc.cluster.local".into()), ports: vec![] }));
        let server = Arc::new(Server { zone: Arc::new(RwLock::new(zone)), forwarder: Forwarder::new(vec![]) });
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = std::net::UdpSocket::bind(address).unwrap();
        let (udp, tcp) = sockets(udp, tcp).unwrap();
        tokio::spawn({
            let server = server.clone();
            async move { server.serve_udp(udp).await }
        });
        tokio::spawn(server.clone().serve_tcp(tcp));
        (address, server)
    }

    fn query(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    async fn ask_udp(address: SocketAddr, bytes: &[u8]) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(bytes, address).await.unwrap();
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer).await.unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    #[tokio::test]
    async fn answers_over_udp_and_tcp() {
        let (address, _server) = server().await;
        let short = ask_udp(address, &query("one.a.svc.cluster.local.")).await;
        assert_eq!(short.answers[0].data.to_string(), "10.43.0.9");
        assert!(short.metadata.authoritative && !short.metadata.truncation);
        let alias = ask_udp(address, &query("alias.a.svc.cluster.local.")).await;
        assert_eq!(alias.answers.len(), 2, "the alias and what it stands for");

        let long = query("many.a.svc.cluster.local.");
        assert!(ask_udp(address, &long).await.metadata.truncation);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_u16(long.len() as u16).await.unwrap();
        stream.write_all(&long).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 200);
    }

    #[tokio::test]
    async fn aliases_are_followed_out_of_the_cluster() {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut zone = Zone::new("cluster.local").unwrap();
        zone.set("a", "away", Some(Service { kind: Kind::External("example.org".into()), ports: vec![] }));
        let forwarder = Forwarder::new(vec![upstream.local_addr().unwrap()]);
        let server = Arc::new(Server { zone: Arc::new(RwLock::new(zone)), forwarder });
        let udp = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = udp.local_addr().unwrap();
        tokio::spawn(async move { server.serve_udp(udp).await });
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, peer) = upstream.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let name = asked.queries[0].name().clone();
            let data = RData::A(hickory_proto::rr::rdata::A([192, 0, 2, 9].into()));
            let answers = vec![hickory_proto::rr::Record::from_rdata(name, 60, data)];
            let answer = reply(&asked, Answer { answers, ..Answer::default() });
            upstream.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
        });
        let told = ask_udp(address, &query("away.a.svc.cluster.local.")).await;
        let data: Vec<_> = told.answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(data, ["example.org.", "192.0.2.9"]);
    }

    #[tokio::test]
    async fn the_rest_of_the_world_fails_at_once_without_upstreams() {
        let (address, _server) = server().await;
        let answer = ask_udp(address, &query("example.org.")).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(answer.queries.len(), 1);
        assert_eq!(
            ask_udp(address, &[0, 7, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1]).await.metadata.response_code,
            ResponseCode::FormErr
        );
    }
}
