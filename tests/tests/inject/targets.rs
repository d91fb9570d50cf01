//! Where an impairment goes: into a container, and not onto the operator's own session.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use tests::lab::{Side, paths};

use super::support::{Bench, Echo, agent_binary, median, round_trips};

/// A control group with one process, as a container engine makes them. Ended when dropped.
struct Container {
    group: PathBuf,
    process: Child,
}

impl Container {
    fn start(bench: &Bench, id: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"cgroup2"))
            .context("no cgroup2 mount")?;
        let group = PathBuf::from(mount[1]).join(format!("docker-{id}.scope"));
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
        let process = Command::new(paths::system("ip")?)
            .args(["netns", "exec", &bench.server(), "sleep", "60"])
            .spawn()?;
        let container = Self { group, process };
        fs::write(container.group.join("cgroup.procs"), container.process.id().to_string())?;
        // `ip` enters the namespace before it becomes `sleep`.
        let comm = format!("/proc/{}/comm", container.process.id());
        let start = Instant::now();
        while fs::read_to_string(&comm)?.trim() != "sleep" {
            ensure!(start.elapsed() < Duration::from_secs(5), "no sleep");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(container)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The group is empty a moment after its last process was reaped.
        for _ in 0..100 {
            if fs::remove_dir(&self.group).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_container_is_found_by_the_first_digits_of_its_id() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let unique = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let id = format!("{unique:032x}{:032x}", std::process::id());
    // Nanoseconds begin with zeroes, as no other id here does.
    let prefix = &id[..32];
    let _container = Container::start(&bench, &id)?;
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    let agent = bench.add(&format!("--dev eth0 --container {prefix} --delay 50ms"))?;
    let times = round_trips(&bench, Side::Outside, echo.address, 9)?;
    ensure!(median(&times) >= Duration::from_millis(50), "{times:?}");
    bench.succeed(&format!("clear --dev eth0 --container {prefix}"))?;
    agent.end()?;
    bench.wait_until_clean(&before)?;

    for (given, words) in
        [("web", "is not a container id"), ("beefbeefbeef", "no running container")]
    {
        let output = bench.run(&format!("add --dev eth0 --container {given} --delay 50ms"))?;
        let complaint = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1) && complaint.contains(words), "{complaint}");
    }
    Ok(())
}

/// A stand-in for sshd: a process of that name with a connection, which starts what it is told.
const SSHD: &str = r#"
import ctypes, socket, subprocess, sys
ctypes.CDLL(None).prctl(15, b"sshd", 0, 0, 0)
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sys.exit(subprocess.run(sys.argv[3:]).returncode)
"#;

#[test]
fn the_session_that_add_is_typed_in_is_left_alone() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let client = (bench.network.outside_v4(), 0);
    let listener = bench.inside(Side::Outside, || TcpListener::bind(client))??;
    let to = listener.local_addr()?;
    let over_ssh = |arguments: &str| -> Result<Output> {
        Ok(Command::new(paths::system("ip")?)
            .args(["netns", "exec", &bench.server()])
            .arg(paths::system("python3")?)
            .args(["-I", "-c", SSHD, &to.ip().to_string(), &to.port().to_string()])
            .arg(agent_binary()?)
            .args(["inject", "add", "--delay", "5ms"])
            .args(arguments.split(' '))
            .stdin(Stdio::null())
            .output()?)
    };
    let refused = over_ssh("--dev eth0 --for 200ms")?;
    let complaint = String::from_utf8(refused.stderr)?;
    ensure!(refused.status.code() == Some(1), "{complaint}");
    for word in ["`eth0` carries the SSH session", &to.ip().to_string(), "--force"] {
        ensure!(complaint.contains(word), "{complaint}");
    }
    let port = to.port();
    let within = over_ssh(&format!("--dev eth0 --for 200ms --peer-port {port} --protocol tcp"))?;
    ensure!(within.status.code() == Some(1), "{within:?}");
    // Another interface, the operator's wish, or packets that are not the session's.
    let without = format!("--dev eth0 --for 200ms --not-peer-port {port}");
    for arguments in ["--dev lo --for 200ms", "--dev eth0 --for 200ms --force", &without] {
        let start = Instant::now();
        let allowed = over_ssh(arguments)?;
        ensure!(allowed.status.success(), "{arguments}: {allowed:?}");
        ensure!(start.elapsed() >= Duration::from_millis(200), "ended early");
    }
    bench.wait_until_clean(&before)?;
    Ok(())
}
