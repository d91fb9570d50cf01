use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use agent_common::wire::{
    Cleared, Count, ErrorCode, FrameError, Frames, Retransmissions, ServerRequest, Totals, Window,
    encode, preamble,
};

use super::*;

/// An agent that follows a script.
struct Fake {
    stream: UnixStream,
    frames: Frames,
    preamble: bool,
}

impl Fake {
    fn say(&mut self, message: &ToLoadgen) {
        let mut out = Vec::new();
        encode(message, &mut out).unwrap();
        self.stream.write_all(&out).unwrap();
    }

    /// The next message, or None when the peer has gone.
    fn hear(&mut self) -> Option<ToAgent> {
        loop {
            if let Some(body) = self.frames.next_frame().unwrap() {
                return Some(agent_common::wire::decode(body).unwrap());
            }
            let mut bytes = [0; 1000];
            if !self.preamble {
                self.stream.read_exact(&mut bytes[..8]).ok()?;
                assert_eq!(bytes[..8], preamble());
                self.preamble = true;
            }
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.frames.push(&bytes[..count]),
            }
        }
    }

    /// Hello to Started, with every answer checked.
    fn greet(&mut self) -> ToAgent {
        let boot_id = read_proc("/proc/sys/kernel/random/boot_id").unwrap();
        self.greet_from(&boot_id);
        let target = self.hear().unwrap();
        self.say(&ToLoadgen::Targeted(targeted()));
        target
    }

    fn greet_from(&mut self, boot_id: &str) {
        self.stream.write_all(&preamble()).unwrap();
        let Some(ToAgent::Hello(hello)) = self.hear() else { panic!("no Hello") };
        assert_eq!(hello.version, VERSION);
        self.say(&ToLoadgen::Hello(Hello { boot_id: boot_id.to_owned(), ..hello }));
    }

    fn start(&mut self) {
        self.greet();
        assert_eq!(self.hear(), Some(ToAgent::Start));
        self.say(&ToLoadgen::Started { at_ns: 77 });
    }
}

fn targeted() -> Targeted {
    Targeted {
        netns: 1,
        processes: Vec::new(),
        plan: Vec::new(),
        backlog: 128,
        device: "eth9".to_owned(),
    }
}

fn totals() -> Totals {
    Totals {
        requests: 2,
        counters: vec![Count { name: "unseen_accept".to_owned(), count: 1 }],
        lost_events: 0,
        peer_slow: 0,
        unix_database: None,
    }
}

fn request(ordinal: u32) -> ServerRequest {
    let address = "127.0.0.1:9".parse().unwrap();
    ServerRequest {
        conn: 1,
        client: address,
        server: address,
        ordinal,
        tid: 0,
        flags: 0,
        s0: 1,
        s2: 2,
        s1: 3,
        s3: 4,
        s4: 5,
        s5: 6,
        rx_offset: 0,
        rx_bytes: 1,
        tx_offset: 0,
        tx_bytes: 1,
    }
}

fn window(injector_dropped: u64) -> Window {
    Window {
        from_ns: 0,
        to_ns: 1,
        threads: Vec::new(),
        queue_mean: 0.5,
        queue_max: 3,
        lost: Vec::new(),
        listen_overflows: 0,
        injector_dropped,
        retransmissions: Some(Retransmissions { segments: 2, timeouts: 1, ..Default::default() }),
    }
}

/// Runs `agent` on a socket of its own; what it returns comes with the session's outcome.
fn with_agent<A: Send + 'static, R>(
    agent: impl FnOnce(Fake) -> A + Send + 'static,
    delay: Option<Delay>,
    run: impl FnOnce(Result<Session, PairError>) -> R,
) -> (R, A) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        agent(Fake { stream, frames: Frames::default(), preamble: false })
    });
    let setup = Setup {
        socket,
        target: "127.0.0.1:8000".parse().unwrap(),
        db_ports: vec![5432],
        delay,
        lease: Duration::from_millis(300),
    };
    let result = run(begin(&setup, Duration::from_millis(300)));
    (result, thread.join().unwrap())
}

fn error(agent: impl FnOnce(Fake) + Send + 'static) -> PairError {
    with_agent(agent, None, |session| session.unwrap_err()).0
}

#[test]
fn a_session_collects_everything_and_says_goodbye() {
    let delay = Delay { delay: Duration::from_millis(100), device: Some("eth9".to_owned()) };
    let agent = |mut fake: Fake| {
        let target = fake.greet();
        let db_ports = vec![5432];
        let address = "127.0.0.1:8000".parse().unwrap();
        assert_eq!(target, ToAgent::Target(TargetRequest { address, db_ports }));
        fake.say(&ToLoadgen::Notice("a remark".to_owned()));
        let Some(ToAgent::Impair(asked)) = fake.hear() else { panic!("no Impair") };
        assert_eq!((asked.delay_ns, asked.lease_ms), (100_000_000, 300));
        assert_eq!(asked.device.as_deref(), Some("eth9"));
        fake.say(&ToLoadgen::Impaired(Impaired {
            engine: "netem".to_owned(),
            device: "eth9".to_owned(),
            delay_ns: asked.delay_ns,
            at_ns: 5,
        }));
        assert_eq!(fake.hear(), Some(ToAgent::Start));
        fake.say(&ToLoadgen::Started { at_ns: 77 });
        fake.say(&ToLoadgen::Statement { id: 1, text: "select ?".to_owned() });
        fake.say(&ToLoadgen::Requests(vec![request(0), request(1)]));
        fake.say(&ToLoadgen::Window(window(2)));
        let mut heard = Vec::new();
        loop {
            let message = fake.hear();
            match message {
                Some(ToAgent::Stop) => {
                    fake.say(&ToLoadgen::Window(window(3)));
                    fake.say(&ToLoadgen::Unfinished(vec![request(2)]));
                    fake.say(&ToLoadgen::Stopped(totals()));
                }
                Some(ToAgent::Clear) => {
                    fake.say(&ToLoadgen::Notice("cleared soon".to_owned()));
                    fake.say(&ToLoadgen::Cleared(Cleared { dropped: 7, ..Cleared::default() }));
                }
                _ => {}
            }
            let Some(message) = message else { return heard };
            heard.push(message);
        }
    };
    let (data, heard) = with_agent(agent, Some(delay), |session| {
        let session = session.unwrap();
        assert_eq!(session.targeted().device, "eth9");
        assert_eq!(session.impaired().unwrap().engine, "netem");
        std::thread::sleep(Duration::from_millis(450));
        assert_eq!(session.lost_at(), None);
        session.finish()
    });
    let renewals = heard.iter().filter(|m| **m == ToAgent::Renew).count();
    assert!((3..=12).contains(&renewals), "a third of 300 ms in 450 ms: {renewals}");
    assert_eq!(heard.last(), Some(&ToAgent::Bye));
    assert_eq!(data.started_at, 77);
    assert_eq!((data.requests.len(), data.unfinished.len(), data.windows.len()), (2, 1, 2));
    assert_eq!(data.statements, ["", "select ?"]);
    // 5 in the windows, 7 in all.
    assert_eq!((data.injector_dropped, data.cleared.map(|c| c.dropped)), (7, Some(7)));
    let sent = Retransmissions { segments: 4, timeouts: 2, ..Default::default() };
    assert_eq!(data.retransmissions, Some(sent));
    assert_eq!(data.totals, Some(totals()));
    assert_eq!(data.lost_at, None);
    assert_eq!(data.notices[0], "a remark");
}

#[test]
fn a_refusal_keeps_the_agents_sentence() {
    let refused = error(|mut fake| {
        fake.stream.write_all(&preamble()).unwrap();
        fake.hear();
        let code = ErrorCode::Busy;
        fake.say(&ToLoadgen::Error(ErrorReply { code, message: "one pair at a time".to_owned() }));
    });
    assert_eq!(refused.to_string(), "the agent refused the greeting: one pair at a time");
}

#[test]
fn versions_and_strangers_are_named() {
    let other = error(|mut fake| {
        fake.stream.write_all(b"DWEL\x07\0\0\0").unwrap();
        fake.hear();
    });
    let text = other.to_string();
    assert!(text.contains("protocol version 7"), "{text}");
    let PairError::Link { error: LinkError::Frame(FrameError::Version { .. }), .. } = other else {
        panic!("{other:?}")
    };
    let stranger = error(|mut fake| {
        fake.stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
        fake.hear();
    });
    assert!(stranger.to_string().contains("does not speak"), "{stranger}");
    let gone = error(drop);
    assert!(gone.to_string().contains("closed the socket") || gone.to_string().contains("reset"));
}

#[test]
fn another_boot_has_another_clock() {
    let other = error(|mut fake| {
        fake.greet_from("11111111-2222");
        fake.hear();
    });
    assert!(other.to_string().contains("boot id 11111111-2222"), "{other}");
}

#[test]
fn no_agent_says_how_to_start_one() {
    let setup = Setup {
        socket: "/nonexistent/agent.sock".into(),
        target: "127.0.0.1:1".parse().unwrap(),
        db_ports: Vec::new(),
        delay: None,
        lease: Duration::from_secs(1),
    };
    let text = begin(&setup, Duration::from_secs(1)).unwrap_err().to_string();
    assert!(text.contains("agent serve --socket /nonexistent/agent.sock"), "{text}");
}

/// The agent starts, sends a batch, then does `last`; the session ends as lost.
fn lose(last: impl FnOnce(&mut Fake) + Send + 'static) -> KernelData {
    let agent = |mut fake: Fake| {
        fake.start();
        fake.say(&ToLoadgen::Requests(vec![request(0)]));
        last(&mut fake);
    };
    let run = |session: Result<Session, PairError>| {
        let session = session.unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while session.lost_at().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(session.lost_at().is_some());
        session.finish()
    };
    with_agent(agent, None, run).0
}

#[test]
fn an_agent_that_dies_or_babbles_in_mid_run_is_lost() {
    let babble = |bytes: &'static [u8]| {
        move |fake: &mut Fake| {
            fake.stream.write_all(bytes).unwrap();
            while fake.hear().is_some() {}
        }
    };
    type Last = Box<dyn FnOnce(&mut Fake) + Send>;
    let cases: [(Last, &str); 5] = [
        (Box::new(|_| {}), "closed the socket"),
        (Box::new(babble(b"\xff\xff\xff\xff")), "over the limit"),
        (Box::new(babble(b"\x02\0\0\0\xff\xff")), "no valid message"),
        (Box::new(|fake| fake.say(&ToLoadgen::Bye)), "closed the socket"),
        (
            Box::new(|fake| {
                fake.say(&ToLoadgen::Statement { id: u32::MAX, text: String::new() });
                while fake.hear().is_some() {}
            }),
            "statement number",
        ),
    ];
    for (last, reason) in cases {
        let data = lose(last);
        assert!(data.lost_at.is_some() && data.totals.is_none());
        assert_eq!(data.requests.len(), 1, "what came before the loss is kept");
        assert!(data.notices.iter().any(|n| n.contains(reason)), "{reason}: {:?}", data.notices);
    }
}

#[test]
fn an_agent_that_never_stops_is_given_up() {
    let agent = |mut fake: Fake| {
        fake.start();
        while fake.hear().is_some() {}
    };
    let begun = Instant::now();
    let run = |session: Result<Session, PairError>| session.unwrap().finish();
    let (data, ()) = with_agent(agent, None, run);
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(data.lost_at.is_some());
    assert!(data.notices[0].contains("said nothing"), "{:?}", data.notices);
}
