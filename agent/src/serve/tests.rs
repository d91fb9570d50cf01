//! A machine that is not there, and a load generator that says what it is told: what the tests of
//! sessions are made of.

mod sessions;

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_common::{
    abi::{self, QueueGauge, ThreadTime, class, counter, flag},
    wire::{
        self, Cleared, DbKind, ErrorCode, ErrorReply, Frames, Held, Hello, ImpairRequest, Other,
        TargetRequest, Targeted, ToAgent, ToLoadgen,
    },
};

use super::{
    kernel::{Impair, Kernel, Service},
    listen,
    pair::{self, Ending},
};
use crate::{
    inject::{Outcome, Receipt, Retransmissions},
    measure,
    model::{
        aggregate::Counters,
        impairment::Impairment,
        permission::{Place, Policy},
    },
    sys::{
        clock,
        discover::Life,
        observe::{Event, ObserveError},
        peer::Peer,
    },
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What the machine has and what was done to it.
#[derive(Clone, Default)]
struct Fake {
    events: Arc<Mutex<VecDeque<Event>>>,
    /// Requests made up at each drain.
    storm: Arc<AtomicU64>,
    drains: Arc<AtomicU64>,
    attached: Arc<AtomicBool>,
    impaired: Arc<AtomicBool>,
    impairment_fails: Arc<AtomicBool>,
    dead: Arc<AtomicBool>,
    taken_over: Arc<AtomicBool>,
    followed: Arc<Mutex<Vec<u32>>>,
    /// Handed over only when the probes are detached.
    late: Arc<Mutex<Vec<Event>>>,
    refuse_attach: Arc<AtomicBool>,
    attach_ms: Arc<AtomicU64>,
    others: Arc<Mutex<Vec<Other>>>,
}

impl Kernel for Fake {
    fn now_ns(&self) -> u64 {
        clock::monotonic_ns()
    }

    fn hello(&self) -> Hello {
        hello_of("agent test")
    }

    fn find(
        &mut self,
        request: &TargetRequest,
        peer: Peer,
    ) -> Result<Box<dyn Service>, ErrorReply> {
        assert_eq!(peer.pid, Some(std::process::id()));
        if request.address.port() == 9 {
            let message = format!("nobody listens on {}", request.address);
            return Err(ErrorReply { code: ErrorCode::NoTarget, message });
        }
        Ok(Box::new(self.clone()))
    }
}

impl Service for Fake {
    fn describe(&self) -> Targeted {
        Targeted { netns: 1, processes: vec![], plan: vec![], backlog: 2048, device: "eth0".into() }
    }

    fn notice(&self) -> Option<String> {
        None
    }

    fn attach(&mut self) -> Result<Box<dyn measure::Probes>, ErrorReply> {
        if self.refuse_attach.load(Ordering::SeqCst) {
            let message = "cannot attach the probe".to_owned();
            return Err(ErrorReply { code: ErrorCode::Kernel, message });
        }
        std::thread::sleep(Duration::from_millis(self.attach_ms.load(Ordering::SeqCst)));
        self.attached.store(true, Ordering::SeqCst);
        Ok(Box::new(Probes(self.clone())))
    }

    fn impair(
        &mut self,
        device: &str,
        impairment: &Impairment,
    ) -> Result<Box<dyn Impair>, ErrorReply> {
        assert_eq!(device, "eth0");
        self.impaired.store(true, Ordering::SeqCst);
        Ok(Box::new(Delay { fake: self.clone(), delay: impairment.delay }))
    }

    fn others(&self) -> Result<Vec<Other>, ErrorReply> {
        Ok(self.others.lock().unwrap().clone())
    }

    fn place(&self) -> Place {
        Place::default()
    }

    fn life(&mut self) -> Life {
        if self.dead.load(Ordering::SeqCst) {
            Life::Gone
        } else if self.taken_over.swap(false, Ordering::SeqCst) {
            Life::TakenOver
        } else {
            Life::Same
        }
    }

    fn processes(&self) -> Vec<u32> {
        vec![41, 42]
    }

    fn listen_drops(&self) -> Option<u64> {
        Some(0)
    }

    fn thread_name(&self, _tgid: u32, _tid: u32) -> Option<String> {
        Some("worker".into())
    }
}

struct Probes(Fake);

impl measure::Probes for Probes {
    fn follow(&mut self, tgids: &[u32]) -> Result<(), ObserveError> {
        self.0.followed.lock().unwrap().extend(tgids);
        Ok(())
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Event)) {
        self.0.drains.fetch_add(1, Ordering::SeqCst);
        for event in self.0.events.lock().unwrap().drain(..) {
            sink(event);
        }
        let long = u64::MAX;
        let mut request = abi::Request::default();
        for field in [
            &mut request.s0,
            &mut request.s1,
            &mut request.s2,
            &mut request.s3,
            &mut request.s4,
            &mut request.s5,
            &mut request.rx_offset,
            &mut request.tx_offset,
        ] {
            *field = long;
        }
        for _ in 0..self.0.storm.load(Ordering::SeqCst) {
            sink(Event::Request(request));
        }
    }

    fn threads(&mut self, now_ns: u64) -> Vec<ThreadTime> {
        let mut time = ThreadTime { tid: 5, tgid: 5, ..ThreadTime::default() };
        time.ns[class::CPU] = now_ns;
        vec![time]
    }

    fn queue(&mut self) -> QueueGauge {
        QueueGauge { n_in: 3, n_out: 1, sum_in: 0, sum_out: 0 }
    }

    fn counters(&mut self) -> Counters {
        let mut counters = Counters::default();
        counters[counter::LOST_HOLD as usize] = 4;
        counters
    }

    fn outstanding(&mut self) -> Vec<Event> {
        let flags = flag::UNFINISHED;
        let mut events = vec![
            Event::Request(abi::Request { conn: 77, flags, ..abi::Request::default() }),
            Event::Request(abi::Request { conn: 78, ..abi::Request::default() }),
        ];
        events.append(&mut self.0.late.lock().unwrap());
        events
    }

    fn unix_database(&mut self) -> Option<String> {
        None
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.0.attached.store(false, Ordering::SeqCst);
    }
}

struct Delay {
    fake: Fake,
    delay: Duration,
}

impl Impair for Delay {
    fn engine(&self) -> &'static str {
        "netem"
    }

    fn delay_ns(&self) -> u64 {
        self.delay.as_nanos() as u64
    }

    fn outcome(&self) -> Outcome {
        let receipt = Receipt { packets: 5, p50_ns: 100, p99_ns: 110, max_ns: 120 };
        let retransmissions = Retransmissions { segments: 4, timeouts: 1, ..Default::default() };
        Outcome {
            receipt: Some(receipt),
            dropped: 2,
            reordered: Some(3),
            largest_backlog: Some(6),
            retransmissions: Some(retransmissions),
            ..Outcome::default()
        }
    }

    fn ended(&self) -> Option<String> {
        self.fake.impairment_fails.load(Ordering::SeqCst).then(|| "its interface is gone".into())
    }

    fn clear(self: Box<Self>) -> Result<Outcome, ErrorReply> {
        Ok(self.outcome())
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.fake.impaired.store(false, Ordering::SeqCst);
    }
}

fn policy() -> Policy {
    Policy {
        uids: vec![nix::unistd::geteuid().as_raw()],
        ports: vec![8000, 9],
        devices: vec!["eth0".parse().unwrap()],
        max_delay: Duration::from_millis(200),
    }
}

fn hello_of(tool: &str) -> Hello {
    Hello { tool: tool.into(), version: wire::VERSION, boot_id: "b".into(), kernel: "6".into() }
}

fn target(port: u16) -> ToAgent {
    let address = ([10, 0, 0, 1], port).into();
    ToAgent::Target(TargetRequest { address, db_ports: vec![5432] })
}

fn impair(delay_ms: u64, lease_ms: u32) -> ToAgent {
    ToAgent::Impair(ImpairRequest { device: None, delay_ns: delay_ms * 1_000_000, lease_ms })
}

/// A load generator's end.
struct Client {
    stream: UnixStream,
    frames: Frames,
    preamble: bool,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, frames: Frames::default(), preamble: false }
    }

    fn greet(&mut self) {
        self.stream.write_all(&wire::preamble()).unwrap();
        self.send(&ToAgent::Hello(hello_of("test")));
        assert!(matches!(self.receive(), Some(ToLoadgen::Hello(_))));
    }

    fn send(&mut self, message: &ToAgent) {
        let mut bytes = Vec::new();
        wire::encode(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next message; None at the end.
    fn receive(&mut self) -> Option<ToLoadgen> {
        if !self.preamble {
            let mut preamble = [0; 8];
            self.stream.read_exact(&mut preamble).unwrap();
            wire::read_preamble(preamble).unwrap();
            self.preamble = true;
        }
        loop {
            if let Some(body) = self.frames.next_frame().unwrap() {
                let message: ToLoadgen = wire::decode(body).unwrap();
                message.check().unwrap();
                return Some(message);
            }
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(bytes) => self.frames.push(&buffer[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next message that is none of the stream of records.
    fn reply(&mut self) -> Option<ToLoadgen> {
        loop {
            match self.receive() {
                Some(
                    ToLoadgen::Window(_)
                    | ToLoadgen::Requests(_)
                    | ToLoadgen::Unfinished(_)
                    | ToLoadgen::InForce { .. },
                ) => {}
                other => return other,
            }
        }
    }

    /// What the next such message says of others' impairments.
    fn in_force(&mut self) -> Vec<Other> {
        loop {
            match self.receive().expect("ended early") {
                ToLoadgen::InForce { others, .. } => break others,
                ToLoadgen::Stopped(_) => panic!("not told"),
                _ => {}
            }
        }
    }

    fn error(&mut self) -> ErrorReply {
        match self.reply() {
            Some(ToLoadgen::Error(reply)) => reply,
            other => panic!("no error but {other:?}"),
        }
    }

    fn ends(&mut self) {
        assert_eq!(self.reply(), Some(ToLoadgen::Bye));
        assert_eq!(self.reply(), None);
    }
}

struct Serving {
    client: Client,
    fake: Fake,
    stop: Arc<AtomicBool>,
    agent: JoinHandle<Ending>,
}

fn serving() -> Serving {
    let (mine, theirs) = UnixStream::pair().unwrap();
    let (fake, stop) = (Fake::default(), Arc::new(AtomicBool::new(false)));
    let (mut kernel, flag) = (fake.clone(), Arc::clone(&stop));
    let agent = std::thread::spawn(move || {
        let peer = Peer { uid: 0, pid: Some(std::process::id()) };
        pair::serve(theirs, peer, &policy(), &mut kernel, &flag, &|| {}).unwrap()
    });
    Serving { client: Client::new(mine), fake, stop, agent }
}

fn impaired() -> Serving {
    let mut serving = serving();
    serving.client.greet();
    serving.client.send(&target(8000));
    assert!(matches!(serving.client.reply(), Some(ToLoadgen::Targeted(_))));
    serving.client.send(&impair(100, 200));
    let Some(ToLoadgen::Impaired(impaired)) = serving.client.reply() else {
        panic!("not impaired")
    };
    assert_eq!((impaired.engine.as_str(), impaired.delay_ns), ("netem", 100_000_000));
    assert!(serving.fake.impaired.load(Ordering::SeqCst));
    serving
}

fn turn(conn: u64, ordinal: u32, flags: u32, sent: &[u8]) -> Event {
    let mut turn = abi::Turn {
        kind: abi::kind::DB_TURN,
        flags,
        conn,
        tuple: abi::Tuple::default(),
        ordinal,
        tid: 1,
        held_conn: 3,
        sent_first: 1,
        sent_last: 1,
        answered: 2,
        received_last: 2,
        tx_bytes: sent.len() as u64,
        rx_bytes: 1,
        payload_len: sent.len() as u32,
        answer_len: 0,
        payload: [0; abi::PAYLOAD_LEN],
        answer: [0; abi::ANSWER_LEN],
    };
    turn.payload[..sent.len()].copy_from_slice(sent);
    Event::DbTurn(Box::new(turn))
}

fn query(sql: &str) -> Vec<u8> {
    let mut bytes = vec![b'Q'];
    bytes.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
    bytes.extend_from_slice(sql.as_bytes());
    bytes.push(0);
    bytes
}
