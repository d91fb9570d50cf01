//! Everything privileged: the kernel's interfaces, each behind a safe one of ours.

pub mod btf;
pub mod clock;
pub mod container;
pub mod discover;
pub mod facts;
pub mod guardian;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod netns_cookie;
pub mod nfqueue;
pub mod nft;
pub mod observe;
pub mod operator;
pub mod peer;
pub mod qdisc;
pub mod realtime;
pub mod receipt;
