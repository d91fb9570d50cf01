//! Whoever is wrong gets one clear error; the agent goes on for the others.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::time::Duration;

use agent_common::wire::{self, ErrorCode, ToAgent};
use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid};
use tests::lab::{Program, user::Identity};

use crate::support::{Agent, Client, command, hello, impair, target};

const NOBODY: u32 = 65_534;
const DAEMON: u32 = 1;
const SECOND: Duration = Duration::from_secs(1);

/// Connects as another user and returns all that is sent to it, or why it cannot.
fn bytes_for(uid: u32, agent: &Agent) -> Result<Vec<u8>> {
    // Says nothing but the preamble: whoever may talk is asked for a Hello within five seconds.
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_UNIX)\n\
        s.connect(sys.argv[1])\n\
        s.sendall(b'DWEL\\x01\\0\\0\\0')\n\
        s.shutdown(socket.SHUT_WR)\n\
        while data := s.recv(4096): sys.stdout.buffer.write(data)";
    // Not the first in PATH, which may be in a directory of root's.
    let output = Program::new("/usr/bin/python3")
        .args(["-c".into(), script.into(), agent.socket().into_os_string()])
        .identity(Identity { uid: Uid::from_raw(uid), gid: Gid::from_raw(uid) })
        .output()?;
    if !output.status.success() {
        anyhow::bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

fn mode_and_owner(agent: &Agent) -> Result<(u32, u32)> {
    let file = std::fs::metadata(agent.socket())?;
    Ok((file.mode() & 0o777, file.uid()))
}

#[test]
fn only_root_may_connect_unless_told_otherwise() -> Result<()> {
    let agent = Agent::start("")?;
    assert_eq!(mode_and_owner(&agent)?, (0o600, 0));
    let error = bytes_for(NOBODY, &agent).unwrap_err().to_string();
    assert!(error.contains("PermissionError"), "{error}");
    agent.pair()?;
    Ok(())
}

#[test]
fn one_user_is_made_the_owner() -> Result<()> {
    let agent = Agent::start(&format!("--allow-uid {NOBODY}"))?;
    assert_eq!(mode_and_owner(&agent)?, (0o600, NOBODY));
    assert_eq!(bytes_for(NOBODY, &agent)?[..8], wire::preamble());
    let error = bytes_for(DAEMON, &agent).unwrap_err().to_string();
    assert!(error.contains("PermissionError"), "{error}");
    agent.pair()?;
    Ok(())
}

#[test]
fn of_several_users_the_kernel_says_who_it_is() -> Result<()> {
    let agent = Agent::start(&format!("--allow-uid {NOBODY} --allow-uid 12345"))?;
    assert_eq!(mode_and_owner(&agent)?.0, 0o666);
    let allowed = bytes_for(NOBODY, &agent)?;
    assert!(!String::from_utf8_lossy(&allowed).contains("may not use"), "{allowed:?}");
    let refused = bytes_for(DAEMON, &agent)?;
    let words = "user 1 may not use this agent; root allows it with `agent serve --allow-uid 1`";
    assert!(String::from_utf8_lossy(&refused).contains(words), "{refused:?}");
    agent.pair()?;
    Ok(())
}

#[test]
fn a_second_peer_is_told_that_it_is_taken() -> Result<()> {
    let agent = Agent::start("")?;
    let mut first = agent.pair()?;
    let mut second = agent.connect()?;
    let reply = second.error()?;
    assert_eq!(reply.code, ErrorCode::Busy);
    assert!(reply.message.contains("another socket"), "{}", reply.message);
    assert_eq!(second.receive()?, None);
    first.send(&ToAgent::Renew)?;
    drop(first);
    // As soon as the first has left, the next may come.
    agent.pair()?;
    Ok(())
}

#[test]
fn what_is_no_message_gets_one_error_and_the_agent_goes_on() -> Result<()> {
    let agent = Agent::start("")?;
    let greeting = || wire::preamble().to_vec();
    let mut version = greeting();
    version[4] = 2;
    let mut old_hello = greeting();
    wire::encode(&ToAgent::Hello(hello(2)), &mut old_hello)?;
    let mut oversized = greeting();
    oversized.extend_from_slice(&u32::try_from(wire::MAX_FRAME + 1)?.to_le_bytes());
    let mut endless = greeting();
    endless.extend_from_slice(&[0xff; 100_000]);
    let mut truncated = greeting();
    wire::encode(&ToAgent::Hello(hello(1)), &mut truncated)?;
    truncated.truncate(truncated.len() - 1);
    for (bytes, words) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "does not speak Dwell's pairing protocol"),
        (version, "version 2, this program version 1"),
        (old_hello, "version 2, this agent version 1"),
        (oversized, "over the limit of 262144"),
        (endless, "over the limit of 262144"),
        ([greeting(), vec![1, 0, 0, 0, 77]].concat(), "holds no valid message"),
        (truncated, "ended inside a frame"),
        (b"DW".to_vec(), "ended inside a frame"),
    ] {
        let mut client: Client = agent.connect()?;
        // The agent may close before it has read all of this.
        let _ = client.stream.write_all(&bytes);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let reply = client.error().with_context(|| words.to_owned())?;
        assert_eq!(reply.code, ErrorCode::Invalid);
        assert!(reply.message.contains(words), "{}", reply.message);
        client.ends()?;
    }
    agent.pair()?;
    Ok(())
}

#[test]
fn a_peer_that_says_nothing_loses_its_place() -> Result<()> {
    let agent = Agent::start("")?;
    let mut mute = agent.connect()?;
    let reply = mute.error()?;
    assert!(reply.message.contains("nothing was heard for 5s"), "{}", reply.message);
    mute.ends()?;
    agent.pair()?;
    Ok(())
}

#[test]
fn more_than_root_allows_is_refused_by_name() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let other = SocketAddr::new(address.ip(), address.port() ^ 1);

    let agent = Agent::start(&format!("--allow-port {}", address.port()))?;
    let mut client = agent.pair()?;
    let reply = client.refused(&target(other))?;
    assert_eq!(reply.code, ErrorCode::Forbidden);
    assert!(reply.message.contains("--allow-port"), "{}", reply.message);
    client.target(address)?;
    let reply = client.refused(&impair(None, SECOND, SECOND))?;
    assert_eq!(reply.code, ErrorCode::Forbidden);
    assert!(
        reply.message.contains(
            "`lo` of the agent's own network namespace may not be impaired (allowed: none)"
        )
    );

    let agent = Agent::start("--allow-dev eth7@host --allow-dev eth8 --max-delay 200ms")?;
    let mut client = agent.pair()?;
    client.target(address)?;
    let reply = client.refused(&impair(Some("lo"), SECOND, SECOND))?;
    assert_eq!(reply.code, ErrorCode::Forbidden);
    assert!(reply.message.contains("(allowed: eth7@host, eth8)"), "{}", reply.message);
    // Without a namespace it is not the host's own: the peer chose that one.
    let reply = client.refused(&impair(Some("eth8"), Duration::from_millis(1), SECOND))?;
    assert_eq!(reply.code, ErrorCode::Forbidden);
    assert!(reply.message.contains("`agent serve --allow-dev eth8@host`"), "{}", reply.message);
    let reply = client.refused(&impair(Some("eth7"), SECOND, SECOND))?;
    assert_eq!(reply.code, ErrorCode::Forbidden);
    assert!(reply.message.contains("1s is more than the allowed 200ms"), "{}", reply.message);
    for (delay, lease, words) in [
        (Duration::ZERO, SECOND, "zero"),
        (Duration::from_secs(3600), SECOND, "is the unit right"),
        (Duration::from_millis(1), Duration::ZERO, "lease"),
    ] {
        let reply = client.refused(&impair(Some("eth7"), delay, lease))?;
        assert_eq!(reply.code, ErrorCode::Invalid);
        assert!(reply.message.contains(words), "{}", reply.message);
    }
    // Allowed, but there is no such interface: the kernel's word, and the session goes on.
    let reply = client.refused(&impair(Some("eth7"), Duration::from_millis(1), SECOND))?;
    assert_eq!(reply.code, ErrorCode::Kernel);
    assert!(reply.message.contains("`eth7` not found"), "{}", reply.message);
    client.target(address)?;
    Ok(())
}

#[test]
fn wrong_command_lines_name_the_fix() -> Result<()> {
    let alive = Agent::start("")?;
    let here = tempfile::tempdir()?;
    let file = here.path().join("file");
    std::fs::write(&file, "mine")?;
    let fresh = here.path().join("agent.sock");
    for (socket, arguments, words) in [
        (alive.socket(), "", "another agent serves on"),
        (file.clone(), "", "is no socket"),
        (here.path().join("no/such/directory"), "", "No such file or directory"),
        (fresh.clone(), "--max-delay 1s", "--allow-dev"),
        (fresh.clone(), "--allow-dev eth0 --max-delay 100", "has no unit"),
        (fresh.clone(), "--allow-dev eth0 --max-delay=-5ms", "negative"),
        (fresh.clone(), "--allow-dev eth0 --max-delay 1h", "is the unit right"),
        (fresh.clone(), "--allow-dev a/b", "no interface can have that name"),
        (fresh.clone(), "--allow-dev eth0@", "no network namespace can have that name"),
        (fresh.clone(), "--allow-port 0", "0"),
    ] {
        let output = command(&socket, arguments)?.stderr(Stdio::piped()).output()?;
        let complaint = String::from_utf8(output.stderr)?;
        assert!(!output.status.success(), "{arguments}: {complaint}");
        assert!(complaint.contains(words), "{arguments}: {complaint}");
    }
    assert!(!fresh.exists());
    assert_eq!(std::fs::read(&file)?, b"mine");
    alive.pair()?;

    let agent = command(&fresh, "")?;
    let output = Program::new(agent.get_program())
        .args(agent.get_args())
        .identity(Identity { uid: Uid::from_raw(NOBODY), gid: Gid::from_raw(NOBODY) })
        .output()?;
    let complaint = String::from_utf8(output.stderr)?;
    assert!(!output.status.success() && complaint.contains("needs root"), "{complaint}");
    Ok(())
}
