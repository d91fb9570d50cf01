use std::net::SocketAddr;

use agent_common::wire::Hello;
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn policy() -> Policy {
    Policy {
        uids: vec![],
        ports: vec![8000],
        devices: vec!["eth0".parse().unwrap()],
        max_delay: Duration::from_millis(200),
    }
}

fn hello(version: u16) -> ToAgent {
    ToAgent::Hello(Hello {
        tool: "loadgen 0.1.0".into(),
        version,
        boot_id: "b".into(),
        kernel: "6".into(),
    })
}

fn target(address: &str) -> ToAgent {
    ToAgent::Target(TargetRequest { address: address.parse().unwrap(), db_ports: vec![5432] })
}

fn impair(device: Option<&str>, delay_ms: u64, lease_ms: u32) -> ToAgent {
    ToAgent::Impair(ImpairRequest {
        device: device.map(str::to_owned),
        delay_ns: delay_ms * 1_000_000,
        lease_ms,
    })
}

fn targeted() -> Session {
    let mut session = Session::new(policy(), 0);
    assert_eq!(session.receive(1, hello(wire::VERSION)), Ok(Action::Greet));
    assert!(matches!(session.receive(2, target("10.0.0.1:8000")), Ok(Action::Find(_))));
    session.targeted("eth0".into(), Place::default());
    session
}

fn refused(session: &mut Session, message: ToAgent) -> (ErrorCode, String) {
    let reply = session.receive(3, message).expect_err("accepted");
    (reply.code, reply.message)
}

#[test]
fn the_whole_way() {
    let mut session = targeted();
    assert_eq!(session.receive(3, ToAgent::Start), Ok(Action::Attach));
    session.started();
    let action = session.receive(4, impair(None, 100, 1_000)).unwrap();
    let Action::Impair { device, impairment, lease } = action else { panic!("{action:?}") };
    assert_eq!(device, "eth0");
    assert_eq!(impairment.delay, Duration::from_millis(100));
    session.impaired(5, lease);
    assert_eq!(session.receive(6, ToAgent::Renew), Ok(Action::Renewed));
    assert_eq!(session.receive(7, ToAgent::Clear), Ok(Action::Clear));
    session.cleared();
    assert_eq!(session.receive(8, ToAgent::Stop), Ok(Action::Finish));
    session.stopped();
    assert_eq!(session.receive(9, ToAgent::Start), Ok(Action::Attach), "a second run");
    assert_eq!(session.receive(10, ToAgent::Bye), Ok(Action::Leave));
}

#[test]
fn order_is_kept() {
    let mut session = Session::new(policy(), 0);
    assert!(refused(&mut session, ToAgent::Start).1.contains("Hello"));
    assert!(!session.greeted());
    let (code, message) = refused(&mut session, hello(9));
    assert_eq!(code, ErrorCode::Invalid);
    assert!(message.contains("version 9") && message.contains("same release"), "{message}");
    assert!(!session.greeted());
    session.receive(1, hello(wire::VERSION)).unwrap();
    assert!(refused(&mut session, hello(wire::VERSION)).1.contains("already"));
    assert!(refused(&mut session, ToAgent::Start).1.contains("Target first"));
    assert!(refused(&mut session, impair(None, 1, 1_000)).1.contains("Target first"));
    assert!(refused(&mut session, ToAgent::Stop).1.contains("Start first"));
    assert!(refused(&mut session, ToAgent::Clear).1.contains("nothing is impaired"));
    let mut session = targeted();
    session.started();
    assert!(refused(&mut session, target("10.0.0.1:8000")).1.contains("Stop"));
    session.impaired(3, Duration::from_secs(1));
    session.stopped();
    assert!(refused(&mut session, target("10.0.0.1:8000")).1.contains("Clear"));
    assert!(refused(&mut session, impair(None, 1, 1_000)).1.contains("already"));
}

#[test]
fn what_is_forbidden_or_out_of_range_is_refused_and_the_session_goes_on() {
    let mut session = targeted();
    for (message, code, word) in [
        (target("10.0.0.1:22"), ErrorCode::Forbidden, "port 22"),
        (target("10.0.0.1:0"), ErrorCode::Invalid, "port 0"),
        (target("0.0.0.0:8000"), ErrorCode::Invalid, "names no host"),
        (impair(Some("lo"), 100, 1_000), ErrorCode::Forbidden, "`lo`"),
        (impair(None, 201, 1_000), ErrorCode::Forbidden, "201ms"),
        (impair(None, 0, 1_000), ErrorCode::Invalid, "zero"),
        (impair(None, 3_600_000, 1_000), ErrorCode::Invalid, "is the unit right"),
        (impair(None, 100, 99), ErrorCode::Invalid, "lease of 99ms"),
        (impair(None, 100, 60_001), ErrorCode::Invalid, "lease of 60.001s"),
    ] {
        let (got, text) = refused(&mut session, message);
        assert_eq!(got, code, "{text}");
        assert!(text.contains(word), "{text}");
    }
    let many = TargetRequest {
        address: SocketAddr::from(([10, 0, 0, 1], 8000)),
        db_ports: vec![1, 2, 3, 4, 5],
    };
    assert!(refused(&mut session, ToAgent::Target(many)).1.contains("limit of 4"));
    assert_eq!(session.receive(3, ToAgent::Start), Ok(Action::Attach));
}

#[test]
fn silence_ends_it_only_where_it_matters() {
    let session = Session::new(policy(), 0);
    assert_eq!(session.expired(5 * SECOND - 1), None);
    assert!(session.expired(5 * SECOND).unwrap().message.contains("5s"));

    let mut session = targeted();
    assert_eq!(session.expired(60 * SECOND), None);
    assert!(session.expired(60 * SECOND + 2).is_some(), "idle");
    session.started();
    assert_eq!(session.expired(u64::MAX), None, "measuring");
    session.impaired(100 * SECOND, Duration::from_secs(2));
    assert_eq!(session.expired(102 * SECOND - 1), None);
    assert!(session.expired(102 * SECOND).unwrap().message.contains("lease"));
    session.receive(101 * SECOND, ToAgent::Renew).unwrap();
    assert_eq!(session.expired(103 * SECOND - 1), None, "renewed");
    session.cleared();
    assert_eq!(session.expired(u64::MAX), None);
}

#[test]
fn chatter_before_hello_buys_no_time() {
    let mut session = Session::new(policy(), 0);
    refused(&mut session, ToAgent::Renew);
    assert!(session.expired(5 * SECOND).is_some());
}

fn any_message() -> impl Strategy<Value = ToAgent> {
    prop_oneof![
        any::<u16>().prop_map(hello),
        Just(hello(wire::VERSION)),
        Just(target("10.0.0.1:8000")),
        any::<u16>().prop_map(|port| target(&format!("10.0.0.1:{port}"))),
        Just(ToAgent::Start),
        (any::<u64>(), any::<u32>()).prop_map(|(delay_ns, lease_ms)| ToAgent::Impair(
            ImpairRequest { device: None, delay_ns, lease_ms }
        )),
        (0..300_u64).prop_map(|ms| impair(None, ms, 1_000)),
        Just(ToAgent::Renew),
        Just(ToAgent::Clear),
        Just(ToAgent::Stop),
    ]
}

proptest! {
    /// Whatever is said in whatever order: nothing is impaired beyond what root allows, nothing is
    /// measured that was not chosen, and never are two things in force at once.
    #[test]
    fn no_order_of_messages_gets_more_than_is_allowed(
        messages in proptest::collection::vec(any_message(), 0..60),
    ) {
        let mut session = Session::new(policy(), 0);
        let (mut chosen, mut measuring, mut impaired) = (false, false, false);
        for (now_ns, message) in (0..).zip(messages) {
            match session.receive(now_ns, message) {
                Ok(Action::Find(request)) => {
                    prop_assert_eq!(request.address.port(), 8000);
                    prop_assert!(!measuring && !impaired);
                    chosen = true;
                    session.targeted("eth0".into(), Place::default());
                }
                Ok(Action::Attach) => {
                    prop_assert!(chosen && !measuring);
                    measuring = true;
                    session.started();
                }
                Ok(Action::Impair { device, impairment, lease }) => {
                    prop_assert!(chosen && !impaired);
                    prop_assert_eq!(device, "eth0");
                    prop_assert!(impairment.delay <= Duration::from_millis(200));
                    prop_assert!(lease <= MAX_LEASE);
                    impaired = true;
                    session.impaired(now_ns, lease);
                }
                Ok(Action::Clear) => {
                    prop_assert!(impaired);
                    impaired = false;
                    session.cleared();
                }
                Ok(Action::Finish) => {
                    prop_assert!(measuring);
                    measuring = false;
                    session.stopped();
                }
                Ok(Action::Greet | Action::Renewed | Action::Leave) | Err(_) => {}
            }
        }
    }
}
