//! The two tcx links between the device and our veth. They detach when they are dropped, or with
//! this process.

use agent_common::filter::Filter;
use aya::EbpfLoader;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};

use crate::model::text::with_causes;
use crate::sys::scope::{self, OBJECT};

/// Why they could not be attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedirectError {
    /// The kernel has no tcx.
    #[error("this kernel has no tcx links (Linux 6.6)")]
    NoTcx,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// The links in force.
#[derive(Debug)]
pub(super) struct Redirects {
    /// From the device to our veth, until [`Self::stop`].
    away: Option<SchedClassifierLink>,
    /// And back. Held only for its end.
    _back: SchedClassifierLink,
}

impl Redirects {
    /// Attaches both, in the calling thread's namespace: first the way back. What `filter` does not
    /// take stays on its way.
    pub(super) fn attach(
        device: (i32, &str),
        veth: (i32, &str),
        filter: Option<&Filter>,
    ) -> Result<Self, RedirectError> {
        let other = |error: aya::EbpfError| RedirectError::Other(error.to_string());
        let mut ebpf = EbpfLoader::new()
            .override_global("DEVICE", &device.0.cast_unsigned(), true)
            .override_global("VETH", &veth.0.cast_unsigned(), true)
            .override_global("FILTERED", &u32::from(filter.is_some()), true)
            .load(OBJECT)
            .map_err(other)?;
        if let Some(filter) = filter {
            scope::set(&mut ebpf, filter).map_err(RedirectError::Other)?;
        }
        let mut attach = |program: &str, to: &str, at| -> Result<_, RedirectError> {
            let program: &mut SchedClassifier = ebpf
                .program_mut(program)
                .and_then(|program| program.try_into().ok())
                .ok_or_else(|| RedirectError::Other(format!("no eBPF program {program}")))?;
            program.load().map_err(of_program)?;
            // Before those of others: each of them then sees a packet once, when it really leaves.
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = program.attach_with_options(to, at, first).map_err(of_program)?;
            program.take_link(id).map_err(of_program)
        };
        let back = attach("redirect_back", veth.1, TcAttachType::Ingress)?;
        let away = attach("redirect_away", device.1, TcAttachType::Egress)?;
        Ok(Self { away: Some(away), _back: back })
    }

    /// From now on packets leave the device as if nothing were there.
    pub(super) fn stop(&mut self) {
        self.away = None;
    }
}

fn of_program(error: ProgramError) -> RedirectError {
    match error {
        // An attach type that the kernel does not know.
        ProgramError::SyscallError(error)
            if error.io_error.raw_os_error() == Some(nix::libc::EINVAL) =>
        {
            RedirectError::NoTcx
        }
        other => RedirectError::Other(with_causes(&other)),
    }
}
