//! Brings up the laboratory and keeps it until its input ends: to look around in by hand.
//!
//! `cargo run -p tests --example lab -- sync|async [ROWS]`

use std::io::Read as _;
use std::time::Instant;

use anyhow::{Result, bail};
use tests::lab::{App, Lab, PostgresSpec, Side, paths, postgres::STUDY_ROWS};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let app = match args.first().map(String::as_str) {
        Some("sync") => App::StudySync,
        Some("async") => App::StudyAsync,
        Some("unix") => App::StudySyncUnixSocket,
        Some(steps) if steps.contains(':') => App::Control { steps: steps.to_owned() },
        _ => bail!("usage: lab sync|async|unix|STEPS [ROWS]"),
    };
    let rows = args.get(1).map_or(Ok(STUDY_ROWS), |rows| rows.parse())?;
    let start = Instant::now();
    let mut lab = Lab::new(paths::scratch().join("logs/by-hand"))?;
    let mut spec = PostgresSpec::study(rows);
    spec.unix_socket = app == App::StudySyncUnixSocket;
    lab.start_postgres(&spec)?;
    println!("postgres {}:5432 after {:?}", lab.network().outside_v4(), start.elapsed());
    lab.start_server(&app)?;
    println!("server   {} after {:?}", lab.url("/io_read"), start.elapsed());
    println!("         sudo ip netns exec {} COMMAND", lab.network().name(Side::Outside));
    println!("         sudo ip netns exec {} COMMAND", lab.network().name(Side::Server));
    println!("end it with Ctrl-D");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
