//! Tracked connections: listed and forgotten. A UDP flow keeps the endpoint that its first packet
//! was given for as long as it talks, so whoever takes an endpoint away must end its flows.
//!
//! It knows tuples of addresses and ports; which are stale is the caller's to say.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::attribute::{self, Attributes};
use crate::{Error, Family, Socket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// One tracked connection of a protocol with ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IPPROTO_*.
    pub protocol: u8,
    /// Where the client sent its first packet.
    pub destination: SocketAddr,
    /// Who answers: another address than the destination if that was rewritten.
    pub replier: SocketAddr,
    /// What names the connection to the kernel, as it gave it.
    identity: Vec<(u16, Vec<u8>)>,
}

impl Connection {
    /// One that the kernel does not know: for tests of what chooses among connections.
    pub fn new(protocol: u8, destination: SocketAddr, replier: SocketAddr) -> Self {
        Connection { protocol, destination, replier, identity: Vec::new() }
    }
}

impl Socket {
    /// The connections of a family that `wanted` chooses.
    pub fn connections(
        &mut self,
        family: Family,
        wanted: impl Fn(&Connection) -> bool,
    ) -> Result<Vec<Connection>, Error> {
        self.dump(GET, family, Attributes::default(), |attributes| connection(&attributes).filter(&wanted))
    }

    /// Forgets a connection; its next packet begins a new one. No error if it has ended.
    pub fn forget_connection(&mut self, connection: &Connection) -> Result<(), Error> {
        let family = if connection.destination.is_ipv6() { Family::Ipv6 } else { Family::Ipv4 };
        const NESTED: u16 = 1 << 15;
        let body = connection.identity.iter().fold(Attributes::default(), |body, (kind, value)| {
            body.bytes(if *kind == ORIGINAL { kind | NESTED } else { *kind }, value)
        });
        match self.request(DELETE, family, &body) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::Socket { operation: "forget a connection", source: error })
            }
            _ => Ok(()),
        }
    }
}

fn connection(attributes: &[(u16, &[u8])]) -> Option<Connection> {
    let find = |wanted| attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
    let (protocol, _, destination) = tuple(find(ORIGINAL)?)?;
    let (_, replier, _) = tuple(find(REPLY)?)?;
    let identity = [ORIGINAL, ID, ZONE].into_iter().filter_map(|kind| Some((kind, find(kind)?.to_vec()))).collect();
    Some(Connection { protocol, destination, replier, identity })
}

/// Protocol, source and destination; `None` if the protocol has no ports.
fn tuple(bytes: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (mut addresses, mut ports, mut protocol) = ([None; 2], [None; 2], None);
    for (kind, nested) in attribute::parse(bytes) {
        for (field, value) in attribute::parse(nested) {
            match (kind, field) {
                (1, 1..=4) => addresses[usize::from(field - 1) % 2] = address(value),
                (2, 1) => protocol = value.first().copied(),
                (2, 2 | 3) => ports[usize::from(field - 2)] = value.first_chunk().map(|port| u16::from_be_bytes(*port)),
                _ => {}
            }
        }
    }
    Some((protocol?, SocketAddr::new(addresses[0]?, ports[0]?), SocketAddr::new(addresses[1]?, ports[1]?)))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}
