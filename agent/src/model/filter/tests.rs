use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::filter::{ARRIVING, ICMP, TCP, UDP, UNTOLD};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

#[test]
fn ranges_are_read_and_written() {
    for text in ["10.0.0.0/8", "10.0.0.1", "0.0.0.0/0", "::/0", "2001:db8::/32", "fe80::1"] {
        assert_eq!(cidr(text).to_string(), text);
        let json = serde_json::to_string(&cidr(text)).unwrap();
        assert_eq!(serde_json::from_str::<Cidr>(&json).unwrap(), cidr(text));
    }
    assert_eq!(cidr("10.0.0.1/32"), cidr("10.0.0.1"));
    for (text, complaint) in [
        ("10.0.0.1/8", "write 10.0.0.0/8, or 10.0.0.1 for one address"),
        ("2001:db8::1/64", "write 2001:db8::/64, or 2001:db8::1 for one address"),
        ("10.0.0.0/33", "0 to 32 bits"),
        ("::/129", "0 to 128 bits"),
        ("10.0.0.0/", "0 to 32 bits"),
        ("10.0.0.0/+8", "0 to 32 bits"),
        ("10.0.0.0/-1", "0 to 32 bits"),
        ("10.0.0", "not an address"),
        ("fe80::1%eth0", "not an address"),
        ("db.example", "not an address"),
        ("", "not an address"),
        ("::ffff:10.0.0.1", "write it as IPv4"),
    ] {
        let error = text.parse::<Cidr>().unwrap_err().to_string();
        assert!(error.contains(complaint), "{text}: {error}");
    }
}

fn filter(only: Selection, not: Selection) -> PacketFilter {
    PacketFilter { only, not }
}

#[test]
fn what_makes_no_sense_is_told() {
    let all = Selection::default;
    let ports = |ports: &[u16]| Selection { ports: ports.to_vec(), ..all() };
    let peers =
        |peers: &[&str]| Selection { peers: peers.iter().map(|p| cidr(p)).collect(), ..all() };
    let protocols = |protocols: &[Protocol]| Selection { protocols: protocols.to_vec(), ..all() };
    let icmp = || protocols(&[Protocol::Icmp]);
    for (filter, complaint) in [
        (filter(ports(&[0]), all()), "--port 0"),
        (filter(all(), ports(&[0])), "--not-port 0"),
        (filter(ports(&[80, 81, 80]), all()), "--port 80 is given twice"),
        (filter(peers(&["10.0.0.1", "10.0.0.1"]), all()), "--peer 10.0.0.1 is given twice"),
        (filter(ports(&[80]), ports(&[80])), "--not-port 80 leaves nothing of --port 80"),
        (
            filter(peers(&["10.1.0.0/16"]), peers(&["10.0.0.0/8"])),
            "--not-peer 10.0.0.0/8 leaves nothing of --peer 10.1.0.0/16",
        ),
        (
            filter(protocols(&[Protocol::Udp]), protocols(&[Protocol::Udp])),
            "--not-protocol udp leaves nothing",
        ),
        (filter(all(), peers(&["::/0", "0.0.0.0/0"])), "leave no packet"),
        (filter(Selection { ports: vec![80], ..icmp() }, all()), "icmp and --port"),
        (filter(Selection { peer_ports: vec![80], ..icmp() }, all()), "icmp and --peer-port"),
        (filter(icmp(), ports(&[80])), "icmp and --not-port"),
        (
            filter(Selection { peer_ports: (1..12).collect(), ..ports(&[1, 2, 3]) }, all()),
            "comes to 33 rules",
        ),
        (filter(all(), ports(&(1..34).collect::<Vec<_>>())), "comes to 33 rules"),
    ] {
        let error = filter.check().unwrap_err().to_string();
        assert!(error.contains(complaint), "{filter:?}: {error}");
    }
    let both = protocols(&[Protocol::Icmp, Protocol::Udp]);
    for filter in [
        filter(all(), all()),
        filter(peers(&["10.0.0.0/8"]), peers(&["10.1.0.0/16", "::/0"])),
        filter(both, ports(&[53])),
        filter(ports(&(1..33).collect::<Vec<_>>()), all()),
    ] {
        assert_eq!(filter.check(), Ok(()), "{filter:?}");
    }
}

#[test]
fn words() {
    let only = Selection {
        peers: vec![cidr("10.0.0.0/8"), cidr("::/0")],
        ports: vec![80],
        ..Selection::default()
    };
    let not = Selection {
        peer_ports: vec![22, 53],
        protocols: vec![Protocol::Icmp],
        ..Selection::default()
    };
    assert_eq!(
        filter(only, not.clone()).to_string(),
        "packets with peer 10.0.0.0/8 or ::/0 and our port 80, but not with the peer's port 22 or 53 or \
         protocol icmp"
    );
    assert_eq!(
        filter(Selection::default(), not).to_string(),
        "all packets but those with the peer's port 22 or 53 or protocol icmp"
    );
}

#[test]
fn survives_json() {
    let all = PacketFilter::default();
    assert_eq!(serde_json::from_str::<PacketFilter>("{}").unwrap(), all);
    assert!(serde_json::from_str::<PacketFilter>(r#"{"onyl":{}}"#).is_err());
    let some = filter(
        Selection { peers: vec![cidr("10.0.0.0/8")], ports: vec![1], ..Selection::default() },
        Selection { protocols: vec![Protocol::Icmp], ..Selection::default() },
    );
    let text = serde_json::to_string(&some).unwrap();
    assert_eq!(
        text,
        r#"{"only":{"peers":["10.0.0.0/8"],"ports":[1]},"not":{"protocols":["icmp"]}}"#
    );
    assert_eq!(serde_json::from_str::<PacketFilter>(&text).unwrap(), some);
}

#[test]
fn a_connection_is_in_its_scope_or_not() {
    let (local, remote) = ("10.0.0.1:22".parse().unwrap(), "10.0.0.9:50000".parse().unwrap());
    let takes = |only: Selection, not: Selection| {
        [Direction::Egress, Direction::Ingress].map(|direction| {
            filter(only.clone(), not.clone()).takes_connection(local, remote, direction)
        })
    };
    let all = Selection::default;
    let ssh = || Selection { ports: vec![22], ..all() };
    assert_eq!(takes(all(), all()), [true; 2]);
    assert_eq!(takes(ssh(), all()), [true; 2]);
    assert_eq!(takes(all(), ssh()), [false; 2]);
    assert_eq!(takes(Selection { peer_ports: vec![22], ..all() }, all()), [false; 2]);
    assert_eq!(takes(Selection { peers: vec![cidr("10.0.0.9")], ..all() }, all()), [true; 2]);
    assert_eq!(takes(Selection { peers: vec![cidr("10.0.0.1")], ..all() }, all()), [false; 2]);
}

// The naive matcher: in the words of the command line, on addresses as std has them.

#[derive(Clone, Debug)]
struct Seen {
    ours: IpAddr,
    peer: IpAddr,
    protocol: u8,
    /// Ours and the peer's.
    ports: Option<(u16, u16)>,
}

/// Whether one kind fits: by any value, and None if the packet does not tell.
fn kind<T>(values: &[T], fits: impl Fn(&T) -> Option<bool>) -> Option<bool> {
    let all: Vec<Option<bool>> = values.iter().map(fits).collect();
    if all.contains(&Some(true)) {
        return Some(true);
    }
    if all.contains(&None) { None } else { Some(false) }
}

fn has_no_ports(protocol: u8) -> bool {
    ![TCP, UDP, UNTOLD].contains(&protocol)
}

fn answers(selection: &Selection, seen: &Seen) -> [Option<Option<bool>>; 4] {
    let given = |empty: bool, answer: Option<bool>| (!empty).then_some(answer);
    let port = |wanted: &u16, which: fn((u16, u16)) -> u16| {
        if has_no_ports(seen.protocol) {
            Some(false)
        } else {
            seen.ports.map(|p| which(p) == *wanted)
        }
    };
    let protocol = |wanted: &Protocol| {
        let number = match wanted {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Icmp => 1,
        };
        (seen.protocol != UNTOLD).then_some(seen.protocol == number)
    };
    let Selection { peers, ports, peer_ports, protocols } = selection;
    [
        given(peers.is_empty(), kind(peers, |cidr| Some(cidr.holds(seen.peer)))),
        given(ports.is_empty(), kind(ports, |wanted| port(wanted, |both| both.0))),
        given(peer_ports.is_empty(), kind(peer_ports, |wanted| port(wanted, |both| both.1))),
        given(protocols.is_empty(), kind(protocols, protocol)),
    ]
}

fn naive(filter: &PacketFilter, seen: &Seen) -> bool {
    let only = answers(&filter.only, seen).into_iter().flatten().all(|fits| fits == Some(true));
    let not = answers(&filter.not, seen).into_iter().flatten().any(|fits| fits != Some(false));
    only && !not
}

const ADDRESSES: [&str; 6] =
    ["10.0.0.1", "10.0.1.1", "11.0.0.1", "2001:db8::1", "2001:db8:0:1::1", "fe80::1"];
const RANGES: [&str; 8] = [
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.1.1",
    "0.0.0.0/0",
    "::/0",
    "2001:db8::/64",
    "2001:db8::/63",
    "fe80::1",
];

fn selections() -> impl Strategy<Value = Selection> {
    let ranges: Vec<Cidr> = RANGES.iter().map(|text| cidr(text)).collect();
    let protocols = vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp];
    (
        subsequence(ranges, 0..=2),
        subsequence(vec![1, 2, 3], 0..=2),
        subsequence(vec![1, 2, 3], 0..=2),
        subsequence(protocols, 0..=2),
    )
        .prop_map(|(peers, ports, peer_ports, protocols)| Selection {
            peers,
            ports,
            peer_ports,
            protocols,
        })
}

fn packets() -> impl Strategy<Value = Seen> {
    let address = || select(ADDRESSES.to_vec()).prop_map(|text| text.parse::<IpAddr>().unwrap());
    let ports = proptest::option::weighted(0.8, (1..5u16, 1..5u16));
    (address(), address(), select(vec![TCP, UDP, ICMP, 50, UNTOLD]), ports).prop_map(
        |(ours, peer, protocol, ports)| {
            let ports = ports.filter(|_| [TCP, UDP].contains(&protocol));
            Seen { ours, peer, protocol, ports }
        },
    )
}

proptest! {
    #[test]
    fn agrees_with_the_naive_matcher(only in selections(), not in selections(), seen in packets()) {
        prop_assume!(seen.ours.is_ipv4() == seen.peer.is_ipv4());
        let filter = filter(only, not);
        for (ways, from, to) in [(LEAVING, seen.ours, seen.peer), (ARRIVING, seen.peer, seen.ours)] {
            let (ours, peers) = seen.ports.unwrap_or_default();
            let (sport, dport) = if ways == LEAVING { (ours, peers) } else { (peers, ours) };
            let packet = Packet {
                source: address(from).1,
                destination: address(to).1,
                family: address(from).0,
                protocol: seen.protocol,
                has_ports: seen.ports.is_some(),
                source_port: sport,
                destination_port: dport,
            };
            prop_assert_eq!(filter.rules(ways).unwrap().takes(&packet), naive(&filter, &seen));
        }
    }

    #[test]
    fn a_range_holds_what_begins_with_its_bits(a: u128, b: u128, prefix in 0..=128u8, v4: bool) {
        let (bits, prefix) = if v4 { (32u8, prefix % 33) } else { (128, prefix) };
        let ip = |value: u128| -> IpAddr {
            if v4 { Ipv4Addr::from(value as u32).into() } else { Ipv6Addr::from(value).into() }
        };
        prop_assume!(ip(a).to_canonical() == ip(a) && ip(b).to_canonical() == ip(b));
        let beyond = u32::from(bits - prefix);
        let begin = |value: u128| {
            let value = if v4 { u128::from(value as u32) } else { value };
            value.checked_shr(beyond).unwrap_or(0)
        };
        let network = ip(begin(a).checked_shl(beyond).unwrap_or(0));
        prop_assume!(network.to_canonical() == network);
        let range = cidr(&format!("{network}/{prefix}"));
        prop_assert!(range.holds(ip(a)) && range.covers(&Cidr::one(ip(a))));
        prop_assert_eq!(range.holds(ip(b)), begin(a) == begin(b));
        prop_assert_eq!(range.to_string().parse::<Cidr>().unwrap(), range);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,20}") {
        let _ = text.parse::<Cidr>();
    }
}
