//! The program as a person runs it: exit codes, messages, files, Ctrl-C, and an agent that dies.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy lets test functions panic, but not their helpers"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent_common::wire::{
    ErrorCode, ErrorReply, Frames, Hello, Targeted, ToAgent, ToLoadgen, Totals, decode, encode,
    preamble,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Answers every request after a pause, for as long as the test runs.
fn server(pause: Duration) -> SocketAddr {
    answering(pause, "200 OK")
}

fn answering(pause: Duration, status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if line.is_empty() {
                        std::thread::sleep(pause);
                        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
                        if writer.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn loadgen() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    outcome(&loadgen().args(arguments).output().unwrap())
}

fn outcome(output: &Output) -> (i32, String, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout.clone()).unwrap(),
        String::from_utf8(output.stderr.clone()).unwrap(),
    )
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}

#[test]
fn a_run_writes_reports_that_merge_and_leaves_nothing_else() {
    let url = url(server(Duration::from_millis(20)));
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (one, page, both) = (file("one.json"), file("one.html"), file("both.json"));
    let common = ["run", &url, "--users", "3", "--ramp", "20/s", "--hold", "1s", "--json", &one];
    let (code, out, err) =
        run(&[&common[..], &["--html", &page, "--setup", "sync", "--route", "r"]].concat());
    assert!([0, 3].contains(&code), "{code} {out} {err}");
    assert!(out.contains("sync/r"), "{out}");
    assert!(!out.contains('\x1b') && !err.contains('\x1b'), "no colour in a pipe");
    let report = json(one.as_ref());
    let client = &report["cells"][0]["client"];
    assert_eq!(report["schema_version"], 1);
    assert_eq!(client["users"], 3);
    assert!(client["successes"].as_u64().unwrap() > 60, "{client}");
    assert_eq!(client["requests"], client["successes"]);
    assert_eq!(report["cells"][0]["validity"]["valid"], code == 0);
    assert!(std::fs::read_to_string(&page).unwrap().contains("<html"));

    let (code, out, err) = run(&["report", &one, &one, "--json", &both]);
    assert_eq!(code, 0, "{err}");
    assert!(out.matches("sync/r").count() >= 2, "{out}");
    assert_eq!(json(both.as_ref())["cells"].as_array().unwrap().len(), 2);

    let prediction = file("p.json");
    let delay = ["--delay", "100ms", "--json", &prediction];
    let (code, out, err) = run(&[&["predict", "--from", &both][..], &delay].concat());
    assert_eq!((code, out.as_str()), (2, ""), "two runs of a name: {err}");
    let (code, out, err) =
        run(&[&["predict", "--name", "other", "--from", &both][..], &delay].concat());
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(err.contains("no run named `other`, but sync/r, sync/r"), "{err}");
    let (code, out, err) = run(&[&["predict", "--from", &one][..], &delay].concat());
    assert_eq!(code, 3, "{err}");
    assert!(out.contains("no prediction: the run was made without the agent"), "{out}");
    assert_eq!(json(prediction.as_ref())["delay_ms"], 100.0);
    let (code, _, err) = run(&[&common[..], &["--predicted", &prediction]].concat());
    assert_eq!(code, 2);
    assert!(err.contains("is for a delay of 100 ms, but this run has 0 ms"), "{err}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 4);
}

#[test]
fn bad_input_is_one_clear_error() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = url(free);
    let load = ["--users", "1", "--hold", "1s"];
    let with = |url: &str, more: &[&str]| run(&[&["run", url][..], &load, more].concat());

    let (code, out, err) = with(&closed, &[]);
    assert_eq!((code, out.as_str(), err.lines().count()), (1, "", 1), "{err}");
    assert!(err.contains("nobody answers on") && err.contains("refused"), "{err}");

    let open = url(server(Duration::ZERO));
    let (code, _, err) = with(&open, &["--json", "/nonexistent/r.json"]);
    assert_eq!((code, err.lines().count()), (1, 1), "{err}");
    assert!(err.contains("cannot write in /nonexistent"), "{err}");
    let (code, _, err) = with(&open, &["--agent", "unix:/nonexistent/a.sock"]);
    assert_eq!((code, err.lines().count()), (1, 1), "{err}");
    assert!(err.contains("agent serve --socket /nonexistent/a.sock"), "{err}");
    assert_eq!(err.matches("No such file").count(), 1, "{err}");
    let (code, _, err) = run(&["report", "/nonexistent/r.json"]);
    assert_eq!((code, err.matches("No such file").count()), (1, 1), "{err}");
    let directory = tempfile::tempdir().unwrap();
    let nonsense = directory.path().join("r.json");
    std::fs::write(&nonsense, "{\"schema_version\": }").unwrap();
    let (code, _, err) = run(&["report", nonsense.to_str().unwrap()]);
    assert_eq!((code, err.matches("expected value").count()), (1, 1), "{err}");

    for (more, text) in [
        (&["--delay", "100ms"][..], "--agent"),
        (&["--form", "x"], "NAME=VALUE"),
        (&["--method", "G T"], "HTTP method"),
        (&["--header", "Content-Length: 1"], "follows from the body"),
        (&["--json", "x", "--html", "x"], "the same file"),
        (&["--json", "-", "--html", "-"], "the same file"),
        (&["--json", ""], "--json"),
        (&["--ramp", "fast"], "5/s"),
        (&["--timeout", "1"], "unit"),
    ] {
        let (code, out, err) = with(&open, more);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains(text), "{err}");
    }
    assert_eq!(with("https://h/", &[]).0, 2);
}

#[test]
fn a_dash_is_standard_output_and_people_read_on_standard_error() {
    let url = url(server(Duration::from_millis(5)));
    let directory = tempfile::tempdir().unwrap();
    let command = |arguments: &[&str]| {
        let output = loadgen().args(arguments).current_dir(directory.path()).output().unwrap();
        outcome(&output)
    };
    let load = ["run", &url, "--users", "1", "--hold", "200ms", "--json", "-"];
    let (code, out, err) = command(&load);
    assert!([0, 3].contains(&code), "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["cells"][0]["client"]["users"], 1);
    assert!(err.contains("1 user,"), "{err}");

    let path = directory.path().join("r.json");
    std::fs::write(&path, &out).unwrap();
    let (code, out, err) = command(&["report", "r.json", "--html", "-"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("<!DOCTYPE html>") && out.ends_with("</html>\n"), "{out}");
    assert!(err.contains("1 user,"), "{err}");
    let (code, out, err) =
        command(&["predict", "--from", "r.json", "--delay", "1ms", "--json", "-"]);
    assert_eq!(code, 3, "{err}");
    let prediction: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(prediction["no_prediction"].is_string() && err.contains("no prediction"), "{err}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_status_is_named_and_a_short_run_has_no_best_ten_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.json");
    let short = ["--users", "1", "--hold", "300ms", "--json", path.to_str().unwrap()];
    let failing = url(answering(Duration::from_millis(5), "501 Whatever"));
    let (code, out, err) = run(&[&["run", &failing][..], &short].concat());
    assert_eq!(code, 3, "{out} {err}");
    let failed = json(&path)["cells"][0]["client"]["failures"]["http_5xx"].as_u64().unwrap();
    assert!(out.contains(&format!("{failed} http_5xx ({failed} x 501 Not Implemented)")), "{out}");
    assert_eq!(json(&path)["cells"][0]["client"]["statuses"]["501"], failed);
    assert!(out.contains("/s over the whole 0.3 s") && !out.contains("10 s"), "{out}");

    let moved = url(answering(Duration::from_millis(5), "302 Found"));
    let (_, out, _) = run(&[&["run", &moved][..], &short].concat());
    assert!(out.contains("x 302 Found, among the successes"), "{out}");
}

#[test]
fn help_tells_exit_codes_and_examples_and_breaks_where_the_terminal_ends() {
    for verb in [&[][..], &["run"], &["report"], &["predict"]] {
        let mut command = loadgen();
        command.args(verb).arg("--help").env("COLUMNS", "80");
        let (code, out, err) = outcome(&command.output().unwrap());
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.contains("Exit codes: 0 "), "{out}");
        assert!(verb.is_empty() || out.contains("Examples:\n  loadgen "), "{out}");
        let lines: Vec<&str> = out.lines().collect();
        let long = lines.iter().find(|line| line.len() > 80);
        assert_eq!(long, None, "{out}");
        // A line is only shorter than the next word needs where a paragraph or an item ends.
        let broken = lines.windows(2).find(|pair| {
            let prose = pair.iter().all(|line| line.starts_with(char::is_alphabetic));
            let next = pair[1].split(' ').next().unwrap_or("").len();
            prose && !pair[0].ends_with('.') && pair[0].len() + 1 + next <= 80
        });
        assert_eq!(broken, None, "{out}");
    }
}

#[test]
fn outputs_that_fail_do_not_cost_the_report() {
    let url = url(server(Duration::from_millis(5)));
    let directory = tempfile::tempdir().unwrap();
    let report = |name: &str| directory.path().join(name);
    let arguments = ["run", &url, "--users", "1", "--hold", "300ms", "--json"];
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();

    let path = report("stdout.json");
    let mut command = loadgen();
    command.args(arguments).arg(&path).stdout(full());
    let (code, _, err) = outcome(&command.output().unwrap());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("cannot write to standard output: No space left"), "{err}");
    assert!(json(&path)["cells"][0]["client"]["successes"].as_u64().unwrap() > 5);

    // Nobody reads standard error: neither progress nor errors may end the program.
    let path = report("stderr.json");
    let mut command = loadgen();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.args(arguments).arg(&path).stdout(full()).stderr(writer);
    assert_eq!(command.status().unwrap().code(), Some(1));
    assert!(json(&path)["cells"][0]["client"]["successes"].as_u64().unwrap() > 5);

    let path = report("page.html");
    let mut command = loadgen();
    command.args(arguments).arg("/dev/full").arg("--html").arg(&path);
    let (code, out, _) = outcome(&command.output().unwrap());
    assert_eq!(code, 1);
    assert!(out.contains("1 user,") && std::fs::read_to_string(&path).unwrap().contains("<html"));
}

#[test]
fn a_full_disk_is_an_error_after_the_text_report() {
    let url = url(server(Duration::from_millis(5)));
    let (code, out, err) =
        run(&["run", &url, "--users", "1", "--hold", "200ms", "--json", "/dev/full"]);
    assert_eq!(code, 1);
    assert!(out.contains("1 user,"), "{out}");
    assert!(err.contains("cannot write /dev/full: No space left on device"), "{err}");
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
}

#[test]
fn ctrl_c_ends_the_run_with_a_report() {
    let url = url(server(Duration::from_millis(10)));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.json");
    let child = loadgen()
        .args(["run", &url, "--users", "2", "--hold", "60s", "--json"])
        .arg(&path)
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let begun = Instant::now();
    interrupt(&child);
    let (code, out, _) = outcome(&child.wait_with_output().unwrap());
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(code, 3);
    assert!(out.contains("the run was interrupted"), "{out}");
    let report = json(&path);
    assert_eq!(report["cells"][0]["validity"]["valid"], false);
    assert!(report["cells"][0]["client"]["successes"].as_u64().unwrap() > 5);
}

/// Hears what the load generator says; says what an agent would.
type Hear<'a> = &'a mut dyn FnMut() -> Option<ToAgent>;
type Say<'a> = &'a mut dyn FnMut(&ToLoadgen);

/// An agent that pairs, then does what the test says.
fn agent(socket: &Path, then: impl FnOnce(Hear<'_>, Say<'_>) + Send + 'static) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&preamble()).unwrap();
        let mut first = [0; 8];
        stream.read_exact(&mut first).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut say = move |message: &ToLoadgen| {
            let mut out = Vec::new();
            encode(message, &mut out).unwrap();
            // The load generator may have left.
            let _ = writer.write_all(&out);
        };
        let mut frames = Frames::default();
        let mut hear = move || loop {
            if let Some(body) = frames.next_frame().unwrap() {
                return Some(decode::<ToAgent>(body).unwrap());
            }
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(count) => frames.push(&bytes[..count]),
            }
        };
        let Some(ToAgent::Hello(hello)) = hear() else { panic!("no Hello") };
        say(&ToLoadgen::Hello(Hello { tool: "agent test".to_owned(), ..hello }));
        assert!(matches!(hear(), Some(ToAgent::Target(_))));
        say(&ToLoadgen::Targeted(Targeted {
            netns: 1,
            processes: Vec::new(),
            plan: Vec::new(),
            backlog: 5,
            device: "eth9".to_owned(),
        }));
        assert_eq!(hear(), Some(ToAgent::Start));
        say(&ToLoadgen::Started { at_ns: 1 });
        then(&mut hear, &mut say);
    });
}

#[test]
fn an_agent_lost_in_mid_run_makes_it_invalid_and_not_shorter() {
    let url = url(server(Duration::from_millis(10)));
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("a.sock");
    agent(&socket, |_, _| std::thread::sleep(Duration::from_millis(300)));
    let begun = Instant::now();
    let name = format!("unix:{}", socket.display());
    let (code, out, err) = run(&["run", &url, "--users", "1", "--hold", "1s", "--agent", &name]);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(code, 3, "{out} {err}");
    assert!(err.contains("kernel side lost at 0."), "{err}");
    assert!(out.contains("kernel side lost at 0."), "{out}");
}

#[test]
fn a_service_that_ends_in_mid_run_makes_it_invalid() {
    let url = url(server(Duration::from_millis(10)));
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("a.sock");
    agent(&socket, |hear, say| {
        std::thread::sleep(Duration::from_millis(300));
        say(&ToLoadgen::Error(ErrorReply {
            code: ErrorCode::TargetGone,
            message: "the service's processes have ended".to_owned(),
        }));
        while let Some(message) = hear() {
            if message == ToAgent::Stop {
                say(&ToLoadgen::Stopped(Totals {
                    requests: 0,
                    counters: Vec::new(),
                    lost_events: 0,
                    peer_slow: 0,
                    unix_database: None,
                }));
            }
        }
    });
    let name = format!("unix:{}", socket.display());
    let (code, out, err) = run(&["run", &url, "--users", "1", "--hold", "1s", "--agent", &name]);
    assert_eq!(code, 3, "{out} {err}");
    let out = out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(out.contains("INVALID") && out.contains("the service's processes have ended"), "{out}");
}

#[test]
fn a_second_ctrl_c_does_not_wait_for_the_agent() {
    let url = url(server(Duration::from_millis(10)));
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("a.sock");
    // Never answers Stop.
    agent(&socket, |hear, _| while hear().is_some() {});
    let child = loadgen()
        .args(["run", &url, "--users", "1", "--hold", "60s"])
        .args(["--agent", &format!("unix:{}", socket.display())])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    interrupt(&child);
    let (code, out, _) = outcome(&child.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (130, ""));
    assert!(begun.elapsed() < Duration::from_secs(2));
}
