//! The accept queue's gauge against what `ss` reads from the listener at the same time.

use std::{net::SocketAddr, thread, time::Duration};

use agent::sys::observe::{Observer, Target};
use agent_common::abi::QueueGauge;
use anyhow::{Context as _, Result};
use tests::{
    lab::{App, Lab, Program, Side, paths, server, user},
    observed,
};

/// Connections by which the two may differ, or this share of the queue.
const CONNECTIONS: f64 = 2.0;
const SHARE: f64 = 0.05;

#[test]
fn the_gauge_agrees_with_ss() -> Result<()> {
    const CLIENTS: usize = 60;
    let mut lab = Lab::new(paths::scratch().join("logs/queue"))?;
    lab.start_server(&App::Control { steps: "sleep:40".to_owned() })?;
    let address = SocketAddr::new(lab.network().server_v4().into(), server::PORT);
    let mut observer = Observer::attach(&Target {
        netns_cookie: observed::netns_cookie(&lab, Side::Server)?,
        port: server::PORT,
        ..Target::default()
    })?;
    let listener = ss(&lab)?;

    observed::inside(&lab, Side::Outside, || {
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(move || (0..3).try_for_each(|_| observed::get(address, "/").map(drop)));
            }
            thread::sleep(Duration::from_millis(300));
            let start = (observed::now_ns(), observer.queue());
            let mut sum = 0.0;
            let mut samples = 0.0;
            let mut deepest = 0.0_f64;
            for _ in 0..40 {
                let before = depth(&observer.queue());
                let shown = receive_queue(&listener.output()?)?;
                let after = depth(&observer.queue());
                println!("gauge {before} .. {after}, ss {shown}");
                let slack = CONNECTIONS.max(SHARE * shown);
                assert!(
                    shown >= before.min(after) - slack && shown <= before.max(after) + slack,
                    "gauge {before} to {after}, ss {shown}"
                );
                deepest = deepest.max(shown);
                sum += shown;
                samples += 1.0;
                thread::sleep(Duration::from_millis(50));
            }
            let end = (observed::now_ns(), observer.queue());
            let span = (end.0 - start.0) as f64;
            let integral = area(&end.1, end.0).wrapping_sub(area(&start.1, start.0)) as f64;
            let (gauge, ss) = (integral / span, sum / samples);
            println!("mean over time: gauge {gauge:.2}, ss {ss:.2}");
            assert!((gauge - ss).abs() <= CONNECTIONS.max(SHARE * ss), "{gauge} against {ss}");
            assert!(deepest > 30.0, "the queue never filled: {deepest}");
            Ok(())
        })
    })
}

fn depth(gauge: &QueueGauge) -> f64 {
    gauge.n_in as f64 - gauge.n_out as f64
}

/// Time integral of the queue's length up to `now`.
fn area(gauge: &QueueGauge, now: u64) -> u64 {
    now.wrapping_mul(gauge.n_in.wrapping_sub(gauge.n_out))
        .wrapping_sub(gauge.sum_in)
        .wrapping_add(gauge.sum_out)
}

fn ss(lab: &Lab) -> Result<Program> {
    Ok(Program::new(paths::system("ss")?)
        .within(lab.network(), Side::Server)
        .identity(user::root())
        .args(["-Hlnt", &format!("sport = :{}", server::PORT)]))
}

/// `LISTEN 12 2048 0.0.0.0:8000 0.0.0.0:*`
fn receive_queue(output: &std::process::Output) -> Result<f64> {
    let text = String::from_utf8_lossy(&output.stdout);
    let field = text.split_whitespace().nth(1).with_context(|| format!("ss printed {text:?}"))?;
    Ok(field.parse()?)
}
