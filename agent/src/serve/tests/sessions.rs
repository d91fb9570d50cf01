//! Sessions over a real socket.

use super::*;

#[test]
fn a_whole_session() {
    let Serving { mut client, fake, agent, .. } = serving();
    client.greet();
    client.send(&target(8000));
    let Some(ToLoadgen::Targeted(targeted)) = client.receive() else { panic!("not targeted") };
    assert_eq!((targeted.backlog, targeted.device.as_str()), (2048, "eth0"));
    client.send(&ToAgent::Start);
    assert!(matches!(client.receive(), Some(ToLoadgen::Started { .. })));

    let mut request = abi::Request { conn: 3, ..abi::Request::default() };
    request.tuple.local[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
    request.tuple.local_port = 8000;
    fake.events.lock().unwrap().extend([
        Event::Request(request),
        turn(9, 0, 0, b""),
        turn(9, 1, 0, &query("SELECT 'secret'")),
        turn(9, 2, 0, &query("SELECT 'other secret'")),
        turn(9, 3, flag::CLOSED, b"X\0\0\0\x04"),
        Event::Hold(abi::Hold { tid: 1, conn: 3, ..abi::Hold::default() }),
        Event::ThreadExit(Box::default()),
    ]);

    let (mut requests, mut turns, mut statements, mut holds) = (vec![], vec![], vec![], 0);
    let window = loop {
        match client.receive().expect("ended early") {
            ToLoadgen::Requests(batch) => requests.extend(batch),
            ToLoadgen::DbTurns(batch) => turns.extend(batch),
            ToLoadgen::Statement { id, text } => statements.push((id, text)),
            ToLoadgen::Holds(batch) => holds += batch.len(),
            ToLoadgen::Window(window) => break window,
            ToLoadgen::InForce { others, .. } => assert_eq!(others, []),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(requests[0].server, "10.0.0.1:8000".parse().unwrap());
    assert_eq!(statements, [(0, "SELECT ?".to_owned())]);
    let kinds: Vec<_> = turns.iter().map(|turn| (turn.kind, turn.statement)).collect();
    let select = (DbKind::Query, Some(0));
    assert_eq!(kinds, [(DbKind::TcpConnect, None), select, select]);
    assert_eq!(holds, 1);
    let span = window.to_ns - window.from_ns;
    assert!((950_000_000..5_000_000_000).contains(&span), "{span} ns");
    assert_eq!(window.threads.len(), 1);
    assert_eq!(window.threads[0].comm, "worker");
    assert_eq!(window.threads[0].ns[class::CPU], span);
    assert!((window.queue_mean - 2.0).abs() < 1e-9);
    assert_eq!(window.queue_max, 2);

    client.send(&ToAgent::Stop);
    let (mut unfinished, mut late) = (vec![], vec![]);
    let totals = loop {
        match client.receive().expect("ended early") {
            ToLoadgen::Unfinished(batch) => unfinished.extend(batch),
            ToLoadgen::Requests(batch) => late.extend(batch),
            ToLoadgen::Window(_) => {}
            ToLoadgen::Stopped(totals) => break totals,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(unfinished.iter().map(|r| r.conn).collect::<Vec<_>>(), [77]);
    assert_eq!(late.iter().map(|r| r.conn).collect::<Vec<_>>(), [78]);
    assert_eq!((totals.requests, totals.lost_events, totals.peer_slow), (2, 4, 0));
    let counters: Vec<_> = totals.counters.iter().map(|c| (c.name.as_str(), c.count)).collect();
    assert_eq!(counters, [("hold_record", 4), ("database_terminate", 1)]);
    assert!(!fake.attached.load(Ordering::SeqCst), "probes are gone");

    client.send(&ToAgent::Bye);
    assert_eq!(client.receive(), None);
    assert_eq!(agent.join().unwrap(), Ending::Left);
}

/// What is in force when the measurement begins is told at once, a change as it is seen, and what
/// began just before the end as well.
#[test]
fn impairments_of_others_are_told() {
    let Serving { mut client, fake, .. } = serving();
    let delay = |device: &str| Other {
        device: device.into(),
        direction: "egress".into(),
        engine: "netem".into(),
        words: "delayed by 50ms".into(),
        delay_ns: 50_000_000,
        pid: None,
    };
    fake.others.lock().unwrap().push(delay("eth0"));
    client.greet();
    client.send(&target(8000));
    assert!(matches!(client.receive(), Some(ToLoadgen::Targeted(_))));
    client.send(&ToAgent::Start);
    assert!(matches!(client.receive(), Some(ToLoadgen::Started { .. })));
    assert_eq!(client.in_force(), [delay("eth0")]);
    fake.others.lock().unwrap().clear();
    assert_eq!(client.in_force(), []);
    fake.others.lock().unwrap().push(delay("eth1"));
    client.send(&ToAgent::Stop);
    assert_eq!(client.in_force(), [delay("eth1")]);
}

#[test]
fn silence_ends_the_impairment_and_the_session() {
    let Serving { mut client, fake, agent, .. } = impaired();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(100));
        client.send(&ToAgent::Renew);
        assert!(fake.impaired.load(Ordering::SeqCst), "renewed");
    }
    let silent = Instant::now();
    assert!(client.error().message.contains("the lease"));
    assert!(silent.elapsed() > Duration::from_millis(150), "{:?}", silent.elapsed());
    client.ends();
    assert!(matches!(agent.join().unwrap(), Ending::Dropped(_)));
    assert!(!fake.impaired.load(Ordering::SeqCst));
}

#[test]
fn time_that_the_agent_takes_is_not_the_peers_silence() {
    let Serving { mut client, fake, .. } = impaired();
    fake.attach_ms.store(600, Ordering::SeqCst);
    client.send(&ToAgent::Start);
    assert!(matches!(client.reply(), Some(ToLoadgen::Started { .. })));
    std::thread::sleep(Duration::from_millis(50));
    assert!(fake.impaired.load(Ordering::SeqCst));
    client.send(&ToAgent::Clear);
    assert!(matches!(client.reply(), Some(ToLoadgen::Cleared(_))));
}

#[test]
fn a_peer_that_dies_takes_its_impairment_along() {
    let Serving { mut client, fake, agent, .. } = impaired();
    client.send(&ToAgent::Start);
    assert!(matches!(client.reply(), Some(ToLoadgen::Started { .. })));
    drop(client);
    agent.join().unwrap();
    assert!(!fake.impaired.load(Ordering::SeqCst));
    assert!(!fake.attached.load(Ordering::SeqCst));
}

#[test]
fn an_agent_that_ends_takes_everything_down_and_says_bye() {
    let Serving { mut client, fake, agent, stop } = impaired();
    stop.store(true, Ordering::SeqCst);
    client.ends();
    assert_eq!(agent.join().unwrap(), Ending::Stopped);
    assert!(!fake.impaired.load(Ordering::SeqCst));
}

#[test]
fn refusals_are_told_and_the_session_goes_on() {
    let Serving { mut client, fake, agent, .. } = serving();
    client.greet();
    for (message, code) in [
        (ToAgent::Start, ErrorCode::Invalid),
        (target(22), ErrorCode::Forbidden),
        (target(9), ErrorCode::NoTarget),
        (ToAgent::Start, ErrorCode::Invalid),
    ] {
        client.send(&message);
        assert_eq!(client.error().code, code);
    }
    client.send(&target(8000));
    assert!(matches!(client.reply(), Some(ToLoadgen::Targeted(_))));
    fake.refuse_attach.store(true, Ordering::SeqCst);
    client.send(&ToAgent::Start);
    assert_eq!(client.error().code, ErrorCode::Kernel);
    client.send(&impair(201, 1_000));
    assert_eq!(client.error().code, ErrorCode::Forbidden);
    fake.refuse_attach.store(false, Ordering::SeqCst);
    client.send(&ToAgent::Start);
    assert!(matches!(client.reply(), Some(ToLoadgen::Started { .. })));
    client.send(&impair(200, 1_000));
    assert!(matches!(client.reply(), Some(ToLoadgen::Impaired(_))));
    client.send(&ToAgent::Clear);
    let Some(ToLoadgen::Cleared(mut cleared)) = client.reply() else { panic!("not cleared") };
    cleared.at_ns = 0;
    let expected = Cleared {
        at_ns: 0,
        dropped: 2,
        held: Some(Held { packets: 5, p50_ns: 100, p99_ns: 110, max_ns: 120 }),
        reordered: Some(3),
        largest_backlog: Some(6),
        retransmissions: Some(Retransmissions { segments: 4, timeouts: 1, ..Default::default() }),
    };
    assert_eq!(cleared, expected);
    assert!(!fake.impaired.load(Ordering::SeqCst));
    client.send(&ToAgent::Bye);
    assert_eq!(agent.join().unwrap(), Ending::Left);
}

#[test]
fn what_is_no_message_gets_one_error_and_the_end() {
    let greeting = || wire::preamble().to_vec();
    let mut other_version = greeting();
    other_version[4] = 9;
    let mut old_hello = greeting();
    let old = Hello { version: 7, ..hello_of("old") };
    wire::encode(&ToAgent::Hello(old), &mut old_hello).unwrap();
    let mut no_hello = greeting();
    wire::encode(&ToAgent::Start, &mut no_hello).unwrap();
    for (bytes, words) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "does not speak Dwell's"),
        (other_version, "version 9"),
        (old_hello, "version 7"),
        (no_hello, "must be Hello"),
        ([greeting(), vec![0xff; 64]].concat(), "over the limit"),
        ([greeting(), vec![3, 0, 0, 0, 250, 1, 2]].concat(), "no valid message"),
        ([greeting(), vec![9, 0, 0, 0, 1]].concat(), "inside a frame"),
        (b"DWEL".to_vec(), "inside a frame"),
    ] {
        let Serving { mut client, agent, .. } = serving();
        client.stream.write_all(&bytes).unwrap();
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let reply = client.error();
        assert_eq!(reply.code, ErrorCode::Invalid);
        assert!(reply.message.contains(words), "{}", reply.message);
        client.ends();
        assert!(matches!(agent.join().unwrap(), Ending::Dropped(_)));
    }
}

#[test]
fn a_service_that_ends_is_reported_once_and_the_run_can_be_closed() {
    let Serving { mut client, fake, .. } = serving();
    client.greet();
    client.send(&target(8000));
    client.send(&ToAgent::Start);
    assert!(matches!(client.reply(), Some(ToLoadgen::Targeted(_))));
    assert!(matches!(client.reply(), Some(ToLoadgen::Started { .. })));
    fake.dead.store(true, Ordering::SeqCst);
    assert_eq!(client.error().code, ErrorCode::TargetGone);
    std::thread::sleep(Duration::from_millis(1_100));
    client.send(&ToAgent::Stop);
    assert!(matches!(client.reply(), Some(ToLoadgen::Stopped(_))));
}

#[test]
fn an_impairment_that_ends_by_itself_is_reported() {
    let Serving { mut client, fake, .. } = impaired();
    fake.impairment_fails.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(80));
        client.send(&ToAgent::Renew);
        if !fake.impaired.load(Ordering::SeqCst) {
            break;
        }
    }
    let reply = client.error();
    assert_eq!(reply.code, ErrorCode::Kernel);
    assert!(reply.message.contains("its interface is gone"), "{}", reply.message);
    client.send(&impair(50, 1_000));
    assert!(matches!(client.reply(), Some(ToLoadgen::Impaired(_))), "it can be set again");
}

/// A peer that does not read: the probes are drained all the while, what it misses is counted.
#[test]
fn a_slow_peer_loses_records_and_holds_nothing_up() {
    let Serving { mut client, fake, .. } = serving();
    client.greet();
    client.send(&target(8000));
    client.send(&ToAgent::Start);
    assert!(matches!(client.reply(), Some(ToLoadgen::Targeted(_))));
    assert!(matches!(client.reply(), Some(ToLoadgen::Started { .. })));
    fake.storm.store(2_000, Ordering::SeqCst);
    let begin = fake.drains.load(Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    // 40 drains are 80,000 requests of some 110 bytes: more than may wait.
    while fake.drains.load(Ordering::SeqCst) < begin + 40 {
        assert!(Instant::now() < deadline, "the probes were held up");
        std::thread::sleep(Duration::from_millis(5));
    }
    fake.storm.store(0, Ordering::SeqCst);
    client.send(&ToAgent::Stop);
    let mut received = 0;
    let totals = loop {
        match client.receive().expect("ended early") {
            ToLoadgen::Requests(batch) => received += batch.len() as u64,
            ToLoadgen::Stopped(totals) => break totals,
            _ => {}
        }
    };
    assert!(totals.peer_slow > 0);
    assert_eq!(received, totals.requests);
}

#[test]
fn one_session_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (wake, waker) = UnixStream::pair().unwrap();
    let flag = Arc::clone(&stop);
    let agent = std::thread::spawn(move || {
        listen::until(&flag, &wake, &listener, &policy(), &mut Fake::default()).unwrap();
    });
    let connect = || Client::new(UnixStream::connect(&path).unwrap());

    let mut first = connect();
    first.greet();
    let mut second = connect();
    assert_eq!(second.error().code, ErrorCode::Busy);
    assert_eq!(second.receive(), None);
    first.send(&target(8000));
    assert!(matches!(first.receive(), Some(ToLoadgen::Targeted(_))), "undisturbed");
    first.send(&ToAgent::Bye);
    assert_eq!(first.receive(), None);
    // The place is free at once, although the first session may still be taken down.
    let mut third = connect();
    third.greet();
    // So it is after one that broke the protocol.
    third.stream.write_all(&[0xff; 100]).unwrap();
    assert_eq!(third.error().code, ErrorCode::Invalid);
    third.ends();
    let mut fourth = connect();
    fourth.greet();

    stop.store(true, Ordering::SeqCst);
    (&waker).write_all(&[1]).unwrap();
    fourth.ends();
    agent.join().unwrap();
}

/// Started, with a few milliseconds of measuring behind it.
fn measuring() -> Serving {
    let mut serving = serving();
    serving.client.greet();
    serving.client.send(&target(8000));
    assert!(matches!(serving.client.reply(), Some(ToLoadgen::Targeted(_))));
    serving.client.send(&ToAgent::Start);
    assert!(matches!(serving.client.reply(), Some(ToLoadgen::Started { .. })));
    serving
}

#[test]
fn the_ends_of_threads_that_come_last_count_in_the_last_window() {
    let Serving { mut client, fake, .. } = measuring();
    let mut time = ThreadTime { tid: 66, tgid: 5, ..ThreadTime::default() };
    time.ns[class::DATABASE] = 1_234;
    fake.late
        .lock()
        .unwrap()
        .push(Event::ThreadExit(Box::new(abi::ThreadExit { time, ..abi::ThreadExit::default() })));
    client.send(&ToAgent::Stop);
    let mut order = Vec::new();
    let last = loop {
        match client.receive().expect("ended early") {
            ToLoadgen::Unfinished(_) => order.push("unfinished"),
            ToLoadgen::Window(window) => {
                order.push("window");
                if let Some(thread) = window.threads.into_iter().find(|thread| thread.tid == 66) {
                    break thread;
                }
            }
            ToLoadgen::Requests(_) | ToLoadgen::InForce { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(last.ns[class::DATABASE], 1_234);
    assert_eq!(order.last_chunk(), Some(&["unfinished", "window"]), "{order:?}");
    assert!(matches!(client.receive(), Some(ToLoadgen::Stopped(_))));
}

#[test]
fn what_one_start_lost_to_a_slow_peer_is_not_the_nexts() {
    let Serving { mut client, fake, .. } = measuring();
    fake.storm.store(5_000, Ordering::SeqCst);
    // Nobody reads meanwhile.
    std::thread::sleep(Duration::from_millis(500));
    fake.storm.store(0, Ordering::SeqCst);
    client.send(&ToAgent::Stop);
    let Some(ToLoadgen::Stopped(totals)) = client.reply() else { panic!("not stopped") };
    assert!(totals.peer_slow > 0);
    client.send(&ToAgent::Start);
    assert!(matches!(client.reply(), Some(ToLoadgen::Started { .. })));
    client.send(&ToAgent::Stop);
    let Some(ToLoadgen::Stopped(totals)) = client.reply() else { panic!("not stopped") };
    assert_eq!(totals.peer_slow, 0);
}

#[test]
fn processes_that_take_over_are_followed_and_the_peer_is_told() {
    let Serving { mut client, fake, .. } = measuring();
    fake.taken_over.store(true, Ordering::SeqCst);
    let Some(ToLoadgen::Notice(notice)) = client.reply() else { panic!("no notice") };
    assert!(notice.ends_with("41, 42"), "{notice}");
    assert_eq!(*fake.followed.lock().unwrap(), [41, 42]);
    client.send(&ToAgent::Stop);
    assert!(matches!(client.reply(), Some(ToLoadgen::Stopped(_))));
}
