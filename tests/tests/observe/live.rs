//! The live view, on a terminal that util-linux's `script` makes.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::observed;

const PATIENCE: Duration = Duration::from_secs(30);
/// Takes the alternate screen, and gives it back.
const TAKES: &str = "\x1b[?1049h";
const GIVES_BACK: &str = "\x1b[?1049l";

/// An agent on a terminal of 80 by 24. Killed when dropped.
struct Screen {
    script: Child,
    shown: Arc<Mutex<String>>,
    _listener: TcpListener,
}

impl Screen {
    /// Starts it and waits until the view is there. What the terminal is like is told before and after.
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let agent = tests::paired::binary("agent")?;
        let line = format!(
            "stty rows 24 cols 80; stty -a; {} observe --port {}; echo ended $?; stty -a",
            agent.display(),
            listener.local_addr()?.port()
        );
        let mut script = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start script (util-linux)")?;
        let mut out = script.stdout.take().context("no output")?;
        let shown = Arc::new(Mutex::new(String::new()));
        let to = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(bytes @ 1..) = out.read(&mut buffer) {
                if let Ok(mut shown) = to.lock() {
                    shown.push_str(&String::from_utf8_lossy(&buffer[..bytes]));
                }
            }
        });
        let screen = Self { script, shown, _listener: listener };
        screen.wait_for("slowest")?;
        Ok(screen)
    }

    fn text(&self) -> String {
        self.shown.lock().map(|shown| shown.clone()).unwrap_or_default()
    }

    fn wait_for(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            ensure!(Instant::now() < deadline, "no {text:?} in {:?}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The agent's own process.
    fn agent(&self) -> Result<Pid> {
        let family = observed::family(self.script.id())?;
        let is_agent = |pid: &&u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "agent")
        };
        Ok(Pid::from_raw(*family.iter().find(is_agent).context("no agent")? as i32))
    }

    fn press(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.script.stdin.as_mut().context("no input")?.write_all(keys)?)
    }

    /// The agent ended with this code, and the terminal is as it was.
    fn given_back(&self, code: i32) -> Result<()> {
        self.wait_for(&format!("ended {code}\r\n"))?;
        let settings =
            |text: &str| text.matches(" icanon ").count() + text.matches("\nicanon ").count();
        // The last line of what `stty` tells.
        let deadline = Instant::now() + PATIENCE;
        while settings(&self.text()) < 2 {
            ensure!(Instant::now() < deadline, "the terminal is not as it was: {:?}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
        let text = self.text();
        let (taken, back) = (text.find(TAKES), text.rfind(GIVES_BACK));
        ensure!(taken.is_some() && taken < back, "the screen is not given back: {text:?}");
        let after = &text[back.unwrap_or(0)..];
        ensure!(text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "no cursor: {text:?}");
        ensure!(after.contains("answered requests: 0 (0.0/s)"), "no summary: {after:?}");
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Ok(agent) = self.agent() {
            let _ = kill(agent, Signal::SIGKILL);
        }
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

#[test]
fn q_and_ctrl_c_end_it() -> Result<()> {
    for keys in [&b"q"[..], b"\x03"] {
        let mut screen = Screen::start()?;
        screen.press(b"x")?;
        screen.press(keys)?;
        screen.given_back(0)?;
    }
    Ok(())
}

#[test]
fn signals_end_it_and_stops_do_not_stop_it() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let screen = Screen::start()?;
        kill(screen.agent()?, Signal::SIGTSTP)?;
        kill(screen.agent()?, signal)?;
        // A second one, while it gives the terminal back, must not end it half-way.
        if let Ok(agent) = screen.agent() {
            let _ = kill(agent, signal);
        }
        screen.given_back(0).with_context(|| signal.to_string())?;
    }
    Ok(())
}
