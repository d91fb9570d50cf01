//! Finding the service behind an address, with namespaces that mirror each other.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use agent::sys::discover::{DiscoverError, Life, find};
use anyhow::Result;
use tests::lab::Side;

use crate::inject::Bench;

/// A listener inside a namespace of the bench; this process holds it.
fn listen(bench: &Bench, side: Side, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = bench.inside(side, || TcpListener::bind(address))??;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn inode(bench: &Bench, side: Side) -> Result<u64> {
    Ok(agent::sys::netns::Netns::named(&bench.network.name(side))?.inode())
}

#[test]
fn a_listener_here() -> Result<()> {
    let me = std::process::id();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut service = find(address, Some(me))?;
    assert_eq!(service.device, "lo");
    assert!(service.beside_peer);
    assert_eq!(service.listening.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [me]);
    assert_eq!(service.listening.backlog, 128);
    assert_eq!(service.listening.cookie, agent::sys::netns_cookie::current()?);
    assert!(service.listening.listen_drops().is_some());
    assert_eq!(service.listening.life(), Life::Same);
    assert!(service.place.host);

    let other = SocketAddr::new(address.ip(), address.port() ^ 1);
    let error = find(other, Some(me)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("nobody listens on {other}; start the service")), "{error}");
    assert!(error.contains(&format!("{address} (")), "names what listens nearby: {error}");
    drop(listener);
    assert!(matches!(find(address, Some(me)), Err(DiscoverError::Nobody { .. })));
    Ok(())
}

#[test]
fn the_namespace_that_has_the_address() -> Result<()> {
    let bench = Bench::new()?;
    let server = bench.network.server_v4();
    // On any address, as in a container; and the same port outside, on another address.
    let (_inside, any) = listen(&bench, Side::Server, ([0, 0, 0, 0], 0).into())?;
    let port = any.port();
    let _outside =
        listen(&bench, Side::Outside, SocketAddr::new(bench.network.outside_v4().into(), port))?;

    let service = find(SocketAddr::new(server.into(), port), Some(std::process::id()))?;
    assert_eq!(service.listening.netns.inode(), inode(&bench, Side::Server)?);
    assert_eq!(service.device, "eth0");
    assert!(!service.beside_peer);
    let cookie = bench.inside(Side::Server, agent::sys::netns_cookie::current)??;
    assert_eq!(service.listening.cookie, cookie);

    let outside = find(SocketAddr::new(bench.network.outside_v4().into(), port), None)?;
    assert_eq!(outside.listening.netns.inode(), inode(&bench, Side::Outside)?);

    let (_v6, six) =
        listen(&bench, Side::Server, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0))?;
    for ip in [server.into(), bench.network.server_v6().into()] {
        let service = find(SocketAddr::new(ip, six.port()), None)?;
        assert_eq!(service.listening.netns.inode(), inode(&bench, Side::Server)?, "{ip}");
        assert_eq!(service.device, "eth0");
    }
    Ok(())
}

#[test]
fn loopback_means_the_peers_own_namespace() -> Result<()> {
    let bench = Bench::new()?;
    let (_server, address) = listen(&bench, Side::Server, ([127, 0, 0, 1], 0).into())?;
    let (_outside, _) = listen(&bench, Side::Outside, address)?;
    let error = find(address, None).unwrap_err();
    let DiscoverError::Ambiguous { namespaces, .. } = &error else { panic!("{error}") };
    assert!(namespaces.contains(&bench.network.name(Side::Server)), "{error}");
    // This process is in neither of the two, so for it nobody listens.
    let error = find(address, Some(std::process::id())).unwrap_err();
    assert!(matches!(error, DiscoverError::Nobody { .. }), "{error}");
    Ok(())
}

#[test]
fn an_address_of_another_host() {
    let error = find("192.0.2.77:80".parse().unwrap(), None).unwrap_err().to_string();
    assert!(error.contains("no network namespace on this host has the address 192.0.2.77"));
}
