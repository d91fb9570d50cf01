//! `agent serve`: the pairing socket. One session with one load generator at a time; everybody else
//! is told that it is taken.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agent_common::duration;
use anyhow::{Context as _, bail};
use nix::unistd::User;

use crate::inject;
use crate::model::{
    impairment,
    permission::{Device, HOST, Policy},
};
use crate::sys::{link, netns::Netns, privilege, stops};

mod host;
mod inbox;
mod kernel;
mod listen;
mod measuring;
mod outbox;
mod pair;
mod records;
mod socket;

/// What a peer may delay unless told otherwise, once an interface is allowed.
const DEFAULT_MAX_DELAY: &str = "1s";

/// Lets one load generator at a time measure, and impair what is allowed here, over a Unix socket
///
/// A peer may measure the service that it names. It may impair nothing unless interfaces are
/// allowed with --allow-dev. Root may connect; other users need --allow-uid. An impairment ends when
/// the peer clears it, leaves, or is silent for longer than its lease.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo agent serve --socket /run/dwell.sock\n  \
    sudo agent serve --socket /run/dwell.sock --allow-uid 1000 --allow-port 8000 --allow-dev eth0@host \
    --max-delay 200ms")]
pub struct Args {
    /// Where to make the socket; one that a dead agent left is replaced
    ///
    /// Mode 0600, owned by root, or by the user of --allow-uid. With several such users it is 0666.
    /// The kernel's word on who connects is checked every time.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// User that may connect besides root, by number or name; may be given several times
    #[arg(long, value_name = "USER", value_parser = user)]
    allow_uid: Vec<u32>,
    /// Port that may be measured; may be given several times [default: any]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    allow_port: Vec<u16>,
    /// Interface of the service's network namespace that may be impaired; may be given several times
    /// [default: none]
    ///
    /// A bare DEV is that interface of any network namespace but the agent's own, since the peer
    /// names the service. DEV@host is that of the agent's own, DEV@NAME that of one of `ip netns`.
    #[arg(long, value_name = "DEV[@NETNS]", value_parser = device)]
    allow_dev: Vec<Device>,
    /// Longest delay that a peer may ask for
    #[arg(
        long, value_name = "TIME", value_parser = delay, default_value = DEFAULT_MAX_DELAY,
        requires = "allow_dev"
    )]
    max_delay: Duration,
}

fn user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!(
            "no user is called `{text}`; give a name that `getent passwd` knows, or a number"
        )),
        Err(errno) => Err(format!("cannot look up user `{text}`: {errno}; give the number")),
    }
}

fn device(text: &str) -> Result<Device, String> {
    text.parse().map_err(str::to_owned)
}

fn delay(text: &str) -> Result<Duration, String> {
    let delay = duration::parse(text).map_err(|error| error.to_string())?;
    impairment::Impairment::fixed_delay(delay).map_err(|error| error.to_string())?;
    Ok(delay)
}

/// Runs the command until a signal ends it.
///
/// # Errors
/// Not root, or no socket can be made.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("measuring needs root: run `sudo agent serve ...`");
    }
    stops::block().context("cannot prepare for Ctrl-Z")?;
    let policy = Policy {
        uids: args.allow_uid.clone(),
        ports: args.allow_port.clone(),
        devices: args.allow_dev.clone(),
        max_delay: args.max_delay,
    };
    let mut kernel =
        host::Host::new().context("this kernel cannot be measured; see `agent doctor`")?;
    for place in inject::recover::all().context("cannot look for what a killed agent left")? {
        eprintln!("agent: of what a killed agent left: {place}");
    }
    let socket = socket::PairingSocket::bind(
        &args.socket,
        &args.allow_uid,
        std::path::Path::new(socket::LOCKS),
    )?;
    // While this is the only thread: the others inherit what is left.
    privilege::keep_what_sessions_need(&args.socket)
        .context("cannot give up the capabilities that are not needed")?;
    for device in args.allow_dev.iter().filter(|device| !exists(device)) {
        eprintln!(
            "agent: warning: there is no interface {device} now; --allow-dev {device} allows nothing \
             until there is (see `ip netns list` and `ip link`)"
        );
    }
    eprintln!("agent: listening on {}; {}", args.socket.display(), allowed(args));
    listen::until_signal(&socket.listener, &policy, &mut kernel)
        .context("the pairing socket failed")?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the interface is there now; a bare name may be of any namespace.
fn exists(device: &Device) -> bool {
    let netns = match device.netns.as_deref() {
        None => return true,
        Some(HOST) => Netns::current(),
        Some(name) => Netns::named(name),
    };
    let has = || {
        let links = link::list(&mut link::open().ok()?).ok()?;
        Some(links.iter().any(|link| link.name == device.name))
    };
    // What cannot be asked is not complained about.
    netns.is_ok_and(|netns| !matches!(netns.run(has), Ok(Some(false))))
}

/// What a peer may do, in words.
fn allowed(args: &Args) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let ports = match &args.allow_port[..] {
        [] => "any port".to_owned(),
        ports => format!("port {}", list(ports.iter().map(u16::to_string).collect())),
    };
    let devices = match &args.allow_dev[..] {
        [] => "nothing may be delayed".to_owned(),
        devices => format!(
            "{} may be delayed by up to {}",
            list(devices.iter().map(Device::to_string).collect()),
            duration::format(args.max_delay)
        ),
    };
    format!("{ports} may be measured, {devices}")
}

#[cfg(test)]
mod tests;
