//! What the injector's eBPF objects count of packets and connections: the indices of each count.

/// Of one interface's queueing discipline.
pub mod line {
    /// Packets that it took so far.
    pub const TAKEN: usize = 0;
    /// The largest number, in that order, of a packet that left.
    pub const NEWEST_GONE: usize = 1;
    /// Packets that left after one that was taken later.
    pub const REORDERED: usize = 2;
    /// Most packets that were in it at once.
    pub const LARGEST: usize = 3;
    /// Number of counts.
    pub const COUNT: usize = 4;
}

/// Of TCP.
pub mod retransmit {
    /// Segments sent again, SYN and SYN/ACK included.
    pub const SEGMENTS: u32 = 0;
    /// Of those, SYN/ACK.
    pub const SYNACKS: u32 = 1;
    /// Of those, probes for a loss at the tail, which wait for less than the timeout.
    pub const PROBES: u32 = 2;
    /// Retransmission timeouts, those of a SYN included.
    pub const TIMEOUTS: u32 = 3;
    /// Number of counts.
    pub const COUNT: u32 = 4;
}
