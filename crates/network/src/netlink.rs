//! Links, addresses and routes of one network namespace, through rtnetlink.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, RawFd};
use std::path::Path;

use anyhow::Context;
use futures::TryStreamExt;
use netlink_packet_route::link::{InfoData, InfoVeth};
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinHandle;

/// A netlink connection, bound to the namespace in which it was opened.
pub(crate) struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// In the namespace of the calling thread.
    pub(crate) fn here() -> io::Result<Netlink> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Netlink { handle, connection: tokio::spawn(connection) })
    }

    /// In the namespace behind `namespace`. A thread of its own enters it and ends, so that no
    /// thread of the executor ever changes its namespace.
    pub(crate) async fn inside(namespace: &File) -> anyhow::Result<Netlink> {
        let namespace = namespace.try_clone()?;
        let runtime = tokio::runtime::Handle::current();
        let (sender, opened) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("netns".into()).spawn(move || {
            let _context = runtime.enter();
            let entered = setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            // A receiver that has gone needs no answer.
            let _ = sender.send(entered.and_then(|()| Netlink::here()));
        })?;
        opened.await?.context("open netlink in the pod's network namespace")
    }

    /// `None` if there is no such link.
    pub(crate) async fn index(&self, name: &str) -> anyhow::Result<Option<u32>> {
        let request = self.handle.link().get().match_name(name.to_owned());
        match request.execute().try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look up interface {name}")),
        }
    }

    pub(crate) async fn required_index(&self, name: &str) -> anyhow::Result<u32> {
        self.index(name).await?.with_context(|| format!("interface {name} is missing"))
    }

    /// A bridge that is up; an existing one is kept.
    pub(crate) async fn ensure_bridge(&self, name: &str, mtu: u32) -> anyhow::Result<u32> {
        if self.index(name).await?.is_none() {
            let bridge = LinkBridge::new(name).mtu(mtu).build();
            ok_if(self.handle.link().add(bridge).execute().await, libc::EEXIST)
                .with_context(|| format!("create bridge {name}"))?;
        }
        let index = self.required_index(name).await?;
        self.up(index).await.with_context(|| format!("bring {name} up"))?;
        Ok(index)
    }

    /// A veth pair: `name` here on `bridge` and up, `peer_name` in `namespace`.
    pub(crate) async fn add_veth(
        &self,
        name: &str,
        bridge: u32,
        mtu: u32,
        peer_name: &str,
        namespace: RawFd,
    ) -> anyhow::Result<()> {
        let peer =
            LinkMessageBuilder::<LinkUnspec>::new().name(peer_name.to_owned()).mtu(mtu).setns_by_fd(namespace).build();
        let veth = LinkVeth::new(name, peer_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(mtu)
            .controller(bridge)
            .up()
            .build();
        self.handle.link().add(veth).execute().await.with_context(|| format!("create interface {name}"))?;
        // Where br_netfilter is on, a pod's packet to its own Service turns round within the bridge.
        let port = LinkBridgePort::new(self.required_index(name).await?).hairpin(true).build();
        self.handle.link().set_port(port).execute().await.with_context(|| format!("set hairpin mode of {name}"))
    }

    pub(crate) async fn up(&self, index: u32) -> anyhow::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        Ok(self.handle.link().set(message).execute().await?)
    }

    /// No error if it has gone already.
    pub(crate) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        ok_if(self.handle.link().del(index).execute().await, libc::ENODEV)
            .with_context(|| format!("delete interface {name}"))
    }

    /// No error if the link has it.
    pub(crate) async fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> anyhow::Result<()> {
        ok_if(self.handle.address().add(index, address.into(), prefix).execute().await, libc::EEXIST)
            .with_context(|| format!("add address {address}/{prefix}"))
    }

    /// Everything goes to `gateway`, which is itself reached directly over the link.
    pub(crate) async fn route_through(&self, index: u32, gateway: Ipv4Addr) -> anyhow::Result<()> {
        let direct = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(gateway, 32)
            .output_interface(index)
            .scope(netlink_packet_route::route::RouteScope::Link);
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index);
        for route in [direct.build(), default.build()] {
            ok_if(self.handle.route().add(route).execute().await, libc::EEXIST)
                .with_context(|| format!("add route through {gateway}"))?;
        }
        Ok(())
    }
}

/// Opens a namespace for use with [`Netlink::inside`].
pub(crate) fn open_namespace(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("open network namespace {}", path.display()))
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}

fn ok_if(result: Result<(), rtnetlink::Error>, fine: i32) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if errno(&error) == Some(fine) => Ok(()),
        result => result,
    }
}
