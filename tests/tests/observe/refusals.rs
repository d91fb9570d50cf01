//! What cannot be measured gets one error that names the thing and the fix.

use std::net::{SocketAddr, TcpListener};

use anyhow::Result;
use tests::lab::{Lab, Side, paths};
use tests::observed;

use crate::support::{Observe, command};

fn refused(arguments: &str, code: i32) -> Result<String> {
    let output = command(arguments)?.output()?;
    let log = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(code), "{arguments}: {log}");
    assert!(output.stdout.is_empty(), "{arguments}");
    assert_eq!(log.matches("error: ").count(), 1, "{log}");
    Ok(log)
}

#[test]
fn nobody_there() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (mine, me) = (listener.local_addr()?.port(), std::process::id());
    let unused = mine ^ 1;
    let log = refused(&format!("--port {unused}"), 1)?;
    assert!(log.contains(&format!("nobody listens on port {unused}; start the service")), "{log}");
    assert!(log.contains(&format!("127.0.0.1:{mine} (")), "names what is near: {log}");
    let log = refused(&format!("--pid {me} --port {unused}"), 1)?;
    assert!(log.contains(&format!("does not listen on port {unused}, but on {mine}")), "{log}");
    let second = TcpListener::bind("127.0.0.1:0")?;
    let log = refused(&format!("--pid {me}"), 1)?;
    assert!(log.contains("listens on several ports: choose one of them with --port ("), "{log}");
    assert!(log.contains(&second.local_addr()?.port().to_string()), "{log}");

    let mut silent = std::process::Command::new("sleep").arg("600").spawn()?;
    let log = refused(&format!("--pid {}", silent.id()), 1);
    silent.kill()?;
    silent.wait()?;
    assert!(log?.contains("(sleep) listens on no TCP port: name the process that does"));
    let log = refused(&format!("--pid {}", silent.id()), 1)?;
    assert!(log.contains(&format!("there is no process {}", silent.id())), "{log}");
    Ok(())
}

#[test]
fn wrong_command_lines() -> Result<()> {
    for (arguments, named) in [
        ("", "--port <PORT>"),
        ("--port 0", "0 is not in 1..=65535"),
        ("--port 8000 --duration 0s", "a measurement of no length"),
        ("--port 8000 --duration=-1s", "is negative"),
        ("--port 8000 --duration 5", "has no unit"),
        ("--pid 0", "0 is not in 1"),
    ] {
        let log = refused(arguments, 2)?;
        assert!(log.contains(named), "{arguments}: {log}");
    }
    let many = "--port 1 --db-port 2 --db-port 3 --db-port 4 --db-port 5 --db-port 6";
    assert!(refused(many, 1)?.contains("at most 4 are followed"));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let log = refused(&format!("--port {port} --db-port {port}"), 1)?;
    assert!(log.contains(&format!("port {port} cannot be both")), "{log}");
    Ok(())
}

/// Two namespaces, neither the agent's, in which somebody listens on the same port.
#[test]
fn a_port_of_several_namespaces() -> Result<()> {
    let lab = Lab::new(paths::scratch().join("logs/observe-refusals"))?;
    let any = SocketAddr::new(lab.network().server_v4().into(), 0);
    let inside = observed::inside(&lab, Side::Server, || Ok(TcpListener::bind(any)?))?;
    let port = inside.local_addr()?.port();
    let other = SocketAddr::new(lab.network().outside_v4().into(), port);
    let _outside = observed::inside(&lab, Side::Outside, || Ok(TcpListener::bind(other)?))?;
    let log = refused(&format!("--port {port}"), 1)?;
    assert!(log.contains(&format!("port {port} is ambiguous")), "{log}");
    for side in [Side::Server, Side::Outside] {
        let who = format!("{}: pid {} (", lab.network().name(side), std::process::id());
        assert!(log.contains(&who), "{log}");
    }
    drop(inside);
    // The only one is found, in whichever namespace.
    let observe = Observe::start(&format!("--port {port} --duration 1s --json"))?;
    let (code, _, log) = observe.end()?;
    assert_eq!(code, Some(0), "{log}");
    Ok(())
}
