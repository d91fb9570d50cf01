//! What a session asks of the machine. The session itself is tested against another implementation.

use agent_common::wire::{ErrorReply, Hello, Other, TargetRequest, Targeted};

use crate::inject::Outcome;
use crate::measure::Probes;
use crate::model::{impairment::Impairment, permission::Place};
use crate::sys::{discover::Life, peer::Peer};

/// The machine. Every error is the sentence that the peer gets.
pub(super) trait Kernel {
    /// CLOCK_MONOTONIC, nanoseconds.
    fn now_ns(&self) -> u64;
    /// Who the agent is.
    fn hello(&self) -> Hello;
    /// Finds a service for the peer.
    fn find(&mut self, request: &TargetRequest, peer: Peer)
    -> Result<Box<dyn Service>, ErrorReply>;
}

/// A service that was found.
pub(super) trait Service {
    /// What the peer is told of it.
    fn describe(&self) -> Targeted;
    /// What the user should know about it, if anything.
    fn notice(&self) -> Option<String>;
    /// Attaches the probes.
    fn attach(&mut self) -> Result<Box<dyn Probes>, ErrorReply>;
    /// Puts an impairment on an interface of its namespace.
    fn impair(
        &mut self,
        device: &str,
        impairment: &Impairment,
    ) -> Result<Box<dyn Impair>, ErrorReply>;
    /// What impairs the interfaces of its namespace and was not put there by [`Self::impair`].
    fn others(&self) -> Result<Vec<Other>, ErrorReply>;
    /// Where its interfaces are.
    fn place(&self) -> Place;
    /// Whether somebody still serves.
    fn life(&mut self) -> Life;
    /// Its processes.
    fn processes(&self) -> Vec<u32>;
    /// ListenDrops of its namespace.
    fn listen_drops(&self) -> Option<u64>;
    /// Name of one of its threads.
    fn thread_name(&self, tgid: u32, tid: u32) -> Option<String>;
}

/// An impairment in force; dropping it ends it.
pub(super) trait Impair {
    /// Name of the engine.
    fn engine(&self) -> &'static str;
    /// Delay as the engine has it, nanoseconds.
    fn delay_ns(&self) -> u64;
    /// What it did so far.
    fn outcome(&self) -> Outcome;
    /// Why it has ended by itself, if it has.
    fn ended(&self) -> Option<String>;
    /// Ends it, and tells what it did.
    fn clear(self: Box<Self>) -> Result<Outcome, ErrorReply>;
}
