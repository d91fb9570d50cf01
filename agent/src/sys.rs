//! Everything privileged: the kernel's interfaces, each behind a safe one of ours.

pub mod btf;
pub mod clock;
pub mod container;
pub mod discover;
pub mod facts;
pub mod guardian;
pub mod ingress;
pub mod link;
pub mod netem;
pub mod netlink;
pub mod netns;
pub mod netns_cookie;
pub mod netns_end;
pub mod nfqueue;
pub mod nft;
pub mod observe;
pub mod operator;
pub mod peer;
pub mod privilege;
pub mod qdisc;
mod raw_tracepoint;
pub mod realtime;
pub mod receipt;
pub mod retransmissions;
mod scope;
pub mod stops;
pub mod tree;
