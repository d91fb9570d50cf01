//! The nfqueue engine's options, on packets: what cannot be seen of them in the pure scheduler.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use agent::model::impairment::Direction;
use agent::model::netem::{NetemOptions, Probability, Rate};
use agent::sys::link;
use agent::sys::nfqueue::{Delay, NfqueueError};
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use tests::lab::net::DEVICE;
use tests::lab::{Side, paths};

use super::support::{Bench, Echo, median, round_trips};

const DELAY: Duration = Duration::from_millis(50);

fn options(delay: Duration) -> NetemOptions {
    let latency_ns = delay.as_nanos() as i64;
    NetemOptions { latency_ns, limit_packets: 100_000, ..NetemOptions::default() }
}

/// Impairs the server's eth0.
fn start(bench: &Bench, options: &NetemOptions, direction: Direction) -> Result<Delay> {
    bench.inside(Side::Server, || {
        let mut route = link::open()?;
        let index = link::find(&mut route, |link| link.name == DEVICE)?.index;
        anyhow::Ok(Delay::start(index, options, None, direction)?)
    })?
}

/// A bench in which nobody speaks unasked, as IPv6 does on a new interface.
fn quiet() -> Result<Bench> {
    let bench = Bench::new()?;
    for side in [Side::Server, Side::Outside] {
        bench.inside(side, || {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6"), "1")
        })??;
    }
    Ok(bench)
}

/// A sender in the server's namespace and who hears it outside.
fn line(bench: &Bench) -> Result<(UdpSocket, UdpSocket)> {
    let receiver =
        bench.inside(Side::Outside, || UdpSocket::bind((bench.network.outside_v4(), 0)))??;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let sender =
        bench.inside(Side::Server, || UdpSocket::bind((bench.network.server_v4(), 0)))??;
    // A clear lets go at once what was held for long.
    for socket in [&receiver, &sender] {
        setsockopt(socket, sockopt::RcvBufForce, &(16 << 20))?;
    }
    sender.connect(receiver.local_addr()?)?;
    // ARP is not delayed, but takes its time: over before anything is counted.
    sender.send(&u32::MAX.to_ne_bytes())?;
    receiver.recv(&mut [0; 4]).context("nothing comes through")?;
    Ok((sender, receiver))
}

/// The numbers that come, until half a second passes without one.
fn heard(receiver: &UdpSocket) -> Vec<u32> {
    let mut bytes = [0; 1500];
    let next = || receiver.recv(&mut bytes).ok().map(|_| [bytes[0], bytes[1], bytes[2], bytes[3]]);
    std::iter::from_fn(next).map(u32::from_ne_bytes).collect()
}

fn send(sender: &UdpSocket, numbers: std::ops::Range<u32>, every: Duration) -> Result<()> {
    for number in numbers {
        sender.send(&number.to_ne_bytes())?;
        thread::sleep(every);
    }
    Ok(())
}

#[test]
fn lost_packets_are_lost_and_counted() -> Result<()> {
    const PACKETS: u32 = 2_000;
    let bench = quiet()?;
    let (sender, receiver) = line(&bench)?;
    let mut asked = options(Duration::from_millis(5));
    asked.loss.probability = Probability::from_fraction(0.3);
    let delay = start(&bench, &asked, Direction::Egress)?;
    send(&sender, 0..PACKETS, Duration::from_micros(100))?;
    let came = heard(&receiver);
    let account = delay.clear()?;
    println!("{} of {PACKETS} came; {account:?}", came.len());
    assert_eq!(account.lost, u64::from(PACKETS) - came.len() as u64);
    assert_eq!((account.receipt.packets, account.dropped), (came.len() as u64, 0));
    // Five standard errors of 2,000 tosses.
    assert!((account.lost as f64 - 600.0).abs() < 5.0 * 20.5, "{account:?}");
    assert!(came.is_sorted());
    Ok(())
}

#[test]
fn jitter_shuffles_and_loses_none() -> Result<()> {
    let bench = quiet()?;
    let (sender, receiver) = line(&bench)?;
    let asked = NetemOptions { jitter_ns: 20_000_000, ..options(DELAY) };
    let delay = start(&bench, &asked, Direction::Egress)?;
    send(&sender, 0..500, Duration::from_micros(500))?;
    let mut came = heard(&receiver);
    let account = delay.clear()?;
    println!("{account:?}");
    assert!(!came.is_sorted() && account.reordered > 100, "{account:?}");
    came.sort_unstable();
    assert_eq!(came, (0..500).collect::<Vec<_>>());
    // From 30 to 70 ms.
    assert!(account.receipt.p50_ns.abs_diff(50_000_000) < 5_000_000, "{account:?}");
    assert!(account.receipt.p99_ns > 68_000_000, "{account:?}");
    Ok(())
}

#[test]
fn every_tenth_packet_goes_ahead() -> Result<()> {
    let bench = quiet()?;
    let (sender, receiver) = line(&bench)?;
    let asked = NetemOptions { reorder_gap: 10, ..options(Duration::from_millis(200)) };
    let delay = start(&bench, &asked, Direction::Egress)?;
    send(&sender, 0..50, Duration::ZERO)?;
    let came = heard(&receiver);
    delay.clear()?;
    assert_eq!(came.len(), 50, "{came:?}");
    // Those ahead may overtake one another, as in netem, when they are there at the same time.
    let mut ahead = came[..5].to_vec();
    ahead.sort_unstable();
    assert_eq!(ahead, [9, 19, 29, 39, 49]);
    assert!(came[5..].is_sorted());
    Ok(())
}

#[test]
fn a_rate_spaces_packets() -> Result<()> {
    const BYTES: usize = 958;
    let bench = quiet()?;
    let (sender, receiver) = line(&bench)?;
    // 958 bytes in 1,000 on the line: 100 of them take 100 ms.
    let rate = Rate { bytes_per_s: 1_000_000, ..Rate::default() };
    let delay =
        start(&bench, &NetemOptions { rate: Some(rate), ..options(DELAY) }, Direction::Egress)?;
    let begin = Instant::now();
    for _ in 0..100 {
        sender.send(&[0; BYTES])?;
    }
    for _ in 0..100 {
        receiver.recv(&mut [0; BYTES])?;
    }
    let took = begin.elapsed();
    delay.clear()?;
    println!("100 packets took {took:?}");
    let least = DELAY + Duration::from_millis(100);
    assert!(took >= least && took < least + Duration::from_millis(30), "{took:?}");
    Ok(())
}

#[test]
fn the_limit_drops_and_is_counted() -> Result<()> {
    let bench = quiet()?;
    let (sender, receiver) = line(&bench)?;
    let asked = NetemOptions { limit_packets: 10, ..options(Duration::from_millis(300)) };
    let delay = start(&bench, &asked, Direction::Egress)?;
    send(&sender, 0..50, Duration::ZERO)?;
    let came = heard(&receiver);
    let account = delay.clear()?;
    assert_eq!(came, (0..10).collect::<Vec<_>>());
    assert_eq!((account.dropped, account.largest_backlog), (40, 10), "{account:?}");
    Ok(())
}

#[test]
fn each_direction_waits_by_itself() -> Result<()> {
    let bench = quiet()?;
    let before = bench.state()?;
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    for (direction, times) in
        [(Direction::Egress, 1), (Direction::Ingress, 1), (Direction::Both, 2)]
    {
        let delay = start(&bench, &options(DELAY), direction)?;
        let trips = round_trips(&bench, Side::Outside, echo.address, 11)?;
        let account = delay.clear()?;
        println!("{direction:?}: {:?}, {account:?}", median(&trips));
        assert!(trips[0] >= DELAY * times, "{direction:?}: {:?}", trips[0]);
        assert!(
            trips[0] < DELAY * times + Duration::from_millis(5),
            "{direction:?}: {:?}",
            trips[0]
        );
        assert_eq!(account.receipt.packets, u64::from(11 * times), "{account:?}");
        bench.wait_until_clean(&before)?;
    }
    Ok(())
}

/// On a connection whose window is open. With packets charged to their socket this took 18 delays.
#[test]
fn a_long_answer_takes_about_one_delay() -> Result<()> {
    const ANSWER: usize = 256 << 10;
    let bench = quiet()?;
    let address = (bench.network.server_v4(), 7001);
    let listener = bench.inside(Side::Server, || TcpListener::bind(address))??;
    // BBR would spread the answer over the round trip.
    setsockopt(&listener, sockopt::TcpCongestion, &OsString::from("reno"))?;
    let server = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let (mut byte, answer) = ([0], vec![0; ANSWER]);
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&answer)?;
        }
        Ok(())
    });
    let delay = start(&bench, &options(DELAY), Direction::Egress)?;
    let mut stream = bench.inside(Side::Outside, || TcpStream::connect(address))??;
    let (mut times, mut answer) = (Vec::new(), vec![0; ANSWER]);
    for _ in 0..12 {
        let begin = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut answer)?;
        times.push(begin.elapsed());
    }
    drop(stream);
    server.join().map_err(|_| anyhow::anyhow!("the server's thread panicked"))??;
    delay.clear()?;
    println!("{times:?}");
    let best = times.iter().min().context("no times")?;
    assert!(*best >= DELAY && *best < DELAY * 3 / 2, "{times:?}");
    Ok(())
}

/// Clearing under traffic: none is lost, and none overtakes another.
#[test]
fn clearing_keeps_the_order() -> Result<()> {
    const PACKETS: u32 = 2_000;
    let bench = quiet()?;
    let (sender, receiver) = line(&bench)?;
    for direction in [Direction::Egress, Direction::Ingress] {
        // Ingress: what comes in by eth0 waits, so the sender is outside.
        let (sender, receiver) = match direction {
            Direction::Egress => (&sender, &receiver),
            _ => {
                receiver.connect(sender.local_addr()?)?;
                sender.set_read_timeout(Some(Duration::from_millis(500)))?;
                (&receiver, &sender)
            }
        };
        let delay = start(&bench, &options(DELAY), direction)?;
        let came = thread::scope(|scope| -> Result<Vec<u32>> {
            let hearing = scope.spawn(|| heard(receiver));
            let sending = scope.spawn(|| send(sender, 0..PACKETS, Duration::from_micros(50)));
            thread::sleep(Duration::from_millis(120));
            let account = delay.clear()?;
            println!("{direction:?}: {account:?}");
            ensure!(account.receipt.packets < u64::from(PACKETS), "cleared too late");
            sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            hearing.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))
        })?;
        assert_eq!(came.len(), PACKETS as usize, "{direction:?}: lost some");
        assert!(came.is_sorted(), "{direction:?}: one overtook another");
    }
    Ok(())
}

/// When a netfilter hook goes, the kernel drops what is queued in the whole namespace.
#[test]
fn what_the_kernel_drops_meanwhile_is_no_receipt() -> Result<()> {
    const PACKETS: u32 = 20;
    let bench = quiet()?;
    let account = bench.inside(Side::Server, || {
        let wait = Duration::from_millis(300);
        let mut delay = Delay::start(1, &options(wait), None, Direction::Egress)?;
        let receiver = UdpSocket::bind("127.0.0.1:0")?;
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        sender.connect(receiver.local_addr()?)?;
        send(&sender, 0..PACKETS, Duration::ZERO)?;
        thread::sleep(Duration::from_millis(50));
        start_and_clear_another()?;
        thread::sleep(wait);
        let account = delay.account();
        delay.clear()?;
        anyhow::Ok(account)
    })??;
    println!("{account:?}");
    assert_eq!((account.receipt.packets, account.dropped), (0, u64::from(PACKETS)));
    Ok(())
}

/// Impairs what comes in by eth0 of the calling thread's namespace, and ends it.
fn start_and_clear_another() -> Result<()> {
    let index = link::find(&mut link::open()?, |link| link.name == DEVICE)?.index;
    Delay::start(index, &options(DELAY), None, Direction::Ingress)?.clear()?;
    Ok(())
}

fn ip(bench: &Bench, arguments: &str) -> Result<()> {
    let status = Command::new(paths::system("ip")?)
        .args(["-n", &bench.server()])
        .args(arguments.split_whitespace())
        .status()?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}

/// A bridge's packets do leave by its port, whatever netfilter's hooks are told.
#[test]
fn a_bridges_port_is_delayed_on_the_way_out_and_refused_on_the_way_in() -> Result<()> {
    let bench = quiet()?;
    let address = bench.network.server_v4();
    ip(&bench, &format!("address del {address}/30 dev {DEVICE}"))?;
    ip(&bench, "link add br0 type bridge forward_delay 0")?;
    ip(&bench, &format!("link set {DEVICE} master br0"))?;
    ip(&bench, &format!("address add {address}/30 dev br0"))?;
    ip(&bench, "link set br0 up")?;
    thread::sleep(Duration::from_millis(1500));
    let echo = Echo::start(&bench, Side::Server, address.into())?;
    let plain = round_trips(&bench, Side::Outside, echo.address, 11)?;
    assert!(plain[5] < DELAY, "{plain:?}");
    let delay = start(&bench, &options(DELAY), Direction::Egress)?;
    let trips = round_trips(&bench, Side::Outside, echo.address, 11)?;
    delay.clear()?;
    assert!(trips[0] >= DELAY && trips[0] < DELAY * 2, "{trips:?}");
    let refused = start(&bench, &options(DELAY), Direction::Ingress).map(drop).unwrap_err();
    let refused = refused.downcast_ref::<NfqueueError>().map(ToString::to_string);
    assert!(refused.as_ref().is_some_and(|text| text.contains("part of a bridge")), "{refused:?}");
    Ok(())
}

/// Our veth, which an operator may come across.
fn veth(bench: &Bench) -> Result<String> {
    let links = bench.inside(Side::Server, || link::list(&mut link::open()?))??;
    let ours = links.into_iter().find(|link| link.name.starts_with("dwell"));
    Ok(ours.context("no veth of ours")?.name)
}

#[test]
fn what_finds_no_way_into_the_bridge_is_counted() -> Result<()> {
    let bench = quiet()?;
    let (sender, receiver) = line(&bench)?;
    let mut delay = start(&bench, &options(DELAY), Direction::Egress)?;
    let veth = veth(&bench)?;
    ip(&bench, &format!("link set {veth} down"))?;
    send(&sender, 0..10, Duration::ZERO)?;
    assert_eq!(heard(&receiver), Vec::<u32>::new());
    let failure = delay.failure().context("nothing is said of it")?;
    assert!(failure.contains(&veth) && failure.contains("down"), "{failure}");
    let account = delay.clear()?;
    assert_eq!((account.dropped, account.receipt.packets), (10, 0), "{account:?}");
    send(&sender, 0..10, Duration::ZERO)?;
    assert_eq!(heard(&receiver).len(), 10);
    Ok(())
}

/// Without its veth nothing would leave the interface any more.
#[test]
fn a_veth_that_somebody_removes_ends_it_with_an_error() -> Result<()> {
    let bench = quiet()?;
    let before = bench.state()?;
    let agent = bench.add("--dev eth0 --netns NS --delay 100ms --engine nfqueue")?;
    let veth = veth(&bench)?;
    let begin = Instant::now();
    ip(&bench, &format!("link delete {veth}"))?;
    let (code, _, complaint) = agent.end()?;
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(code, Some(1), "{complaint}");
    assert!(complaint.contains(&format!("somebody removed the veth {veth}")), "{complaint}");
    let (sender, receiver) = line(&bench)?;
    send(&sender, 0..10, Duration::ZERO)?;
    assert_eq!(heard(&receiver).len(), 10);
    bench.wait_until_clean(&before)?;
    Ok(())
}
