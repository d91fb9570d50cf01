//! The probe plan: which kernel hook serves each mark on this kernel. Pure: facts in, plan out.

use agent_common::wire::PlanLine;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Raw tracepoint of this name.
    RawTracepoint(&'static str),
    /// Entry of this kernel function.
    FEntry(&'static str),
    /// Return of this kernel function.
    FExit(&'static str),
    /// getpeername() at the root of the cgroup2 tree.
    CgroupGetpeername,
}

impl Attach {
    fn describe(self) -> String {
        match self {
            Self::RawTracepoint(name) => format!("raw_tracepoint/{name}"),
            Self::FEntry(name) => format!("fentry/{name}"),
            Self::FExit(name) => format!("fexit/{name}"),
            Self::CgroupGetpeername => "cgroup/getpeername".to_owned(),
        }
    }
}

/// One program and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Name of the program in the eBPF object.
    pub program: &'static str,
    /// Where it is attached.
    pub attach: Attach,
}

/// What this kernel can do, as found by trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Raw tracepoints that exist, of those Dwell can use.
    pub tracepoints: Vec<String>,
    /// Kernel functions that BTF knows, of those Dwell can use.
    pub functions: Vec<String>,
    /// Raw tracepoint programs load; else why not.
    pub raw_tracepoint: Result<(), String>,
    /// fentry and fexit programs load; else why not.
    pub tracing: Result<(), String>,
    /// Programs load that hook getpeername() on a cgroup2 tree; else why not.
    pub cgroup_getpeername: Result<(), String>,
}

/// Raw tracepoints that a plan may use.
pub const TRACEPOINTS: [&str; 10] = [
    "inet_sock_set_state",
    "tcp_destroy_sock",
    "sk_data_ready",
    "sock_recv_length",
    "sock_send_length",
    "tcp_sendmsg_locked",
    "sched_switch",
    "sched_waking",
    "sched_process_fork",
    "sched_process_exit",
];

/// Kernel functions that a plan may use.
pub const FUNCTIONS: [&str; 4] =
    ["sock_def_readable", "inet_csk_accept", "tcp_recvmsg", "tcp_sendmsg"];

/// The programs to load and what each mark is served by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Programs, each once.
    pub hooks: Vec<Hook>,
    /// One line a mark, in causal order, then what is not a mark.
    pub lines: Vec<PlanLine>,
}

/// Makes the plan. Raw tracepoints come first, since they work everywhere and cost least; fexit on
/// accept comes before getpeername, since it also sees callers that do not ask for an address.
#[must_use]
pub fn plan(facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    let life = [raw("inet_sock_set_state"), raw("tcp_destroy_sock")];
    plan.serve("s0", facts, &[&life]);
    plan.serve(
        "s1",
        facts,
        &[&[raw("sk_data_ready")], &[entry("sock_def_readable", "sock_def_readable")]],
    );
    plan.serve("s2", facts, &[&[exit("inet_csk_accept", "inet_csk_accept")], &GETPEERNAME]);
    plan.serve("s3", facts, &[&[raw("sock_recv_length")], &[exit("tcp_recvmsg", "tcp_recvmsg")]]);
    plan.serve(
        "s4",
        facts,
        &[&[raw("tcp_sendmsg_locked")], &[entry("tcp_sendmsg_entry", "tcp_sendmsg")]],
    );
    plan.serve(
        "s5",
        facts,
        &[&[raw("sock_send_length")], &[exit("tcp_sendmsg_exit", "tcp_sendmsg")]],
    );
    // What follows uses hooks that are there already.
    plan.depends("c3k, c4k", &["s1", "s4"]);
    // Without s4 a round trip begins when its sending call returns, and says so by a flag.
    plan.depends("database round trips", &["s0", "s3", "s5"]);
    let scheduler = [
        raw("sched_switch"),
        raw("sched_waking"),
        raw("sched_process_fork"),
        raw("sched_process_exit"),
    ];
    plan.serve("wait classes", facts, &[&scheduler]);
    plan
}

impl Plan {
    /// Whether every mark has a hook.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.lines.iter().all(|line| line.hook.is_some())
    }

    /// Whether this line has a hook.
    #[must_use]
    pub fn serves(&self, mark: &str) -> bool {
        self.lines.iter().any(|line| line.mark == mark && line.hook.is_some())
    }

    /// Takes the first of several sets of hooks that all work; else says why each does not.
    fn serve(&mut self, mark: &str, facts: &Facts, choices: &[&[Hook]]) {
        let mut reasons = Vec::new();
        for &choice in choices {
            let lacking: Vec<String> =
                choice.iter().filter_map(|hook| facts.lacks(hook.attach).err()).collect();
            if lacking.is_empty() {
                self.hooks.extend(choice);
                let mut names: Vec<String> = choice.iter().map(|h| h.attach.describe()).collect();
                names.dedup();
                return self.line(mark, Ok(names.join(" + ")));
            }
            reasons.extend(lacking);
        }
        reasons.dedup();
        self.line(mark, Err(reasons.join("; ")));
    }

    fn depends(&mut self, mark: &str, on: &[&str]) {
        let missing: Vec<&str> = on.iter().copied().filter(|m| !self.serves(m)).collect();
        if missing.is_empty() {
            self.line(mark, Ok(format!("the hooks of {}", on.join(", "))));
        } else {
            self.line(mark, Err(format!("needs {}", missing.join(", "))));
        }
    }

    fn line(&mut self, mark: &str, served: Result<String, String>) {
        let (hook, reason) = match served {
            Ok(hook) => (Some(hook), None),
            Err(reason) => (None, Some(reason)),
        };
        self.lines.push(PlanLine { mark: mark.to_owned(), hook, reason });
    }
}

impl Facts {
    fn lacks(&self, attach: Attach) -> Result<(), String> {
        let exists = |names: &[String], name: &str, what: &str| {
            if names.iter().any(|n| n == name) {
                Ok(())
            } else {
                Err(format!("this kernel has no {what} {name}"))
            }
        };
        match attach {
            Attach::RawTracepoint(name) => {
                self.raw_tracepoint.clone()?;
                exists(&self.tracepoints, name, "tracepoint")
            }
            Attach::FEntry(name) | Attach::FExit(name) => {
                self.tracing.clone()?;
                exists(&self.functions, name, "function")
            }
            Attach::CgroupGetpeername => self.cgroup_getpeername.clone(),
        }
    }
}

const GETPEERNAME: [Hook; 2] = [
    Hook { program: "accept_getpeername4", attach: Attach::CgroupGetpeername },
    Hook { program: "accept_getpeername6", attach: Attach::CgroupGetpeername },
];

const fn raw(name: &'static str) -> Hook {
    Hook { program: name, attach: Attach::RawTracepoint(name) }
}

const fn entry(program: &'static str, function: &'static str) -> Hook {
    Hook { program, attach: Attach::FEntry(function) }
}

const fn exit(program: &'static str, function: &'static str) -> Hook {
    Hook { program, attach: Attach::FExit(function) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(tracepoints: &[&str], tracing: bool) -> Facts {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Facts {
            tracepoints: owned(tracepoints),
            functions: owned(&FUNCTIONS),
            raw_tracepoint: Ok(()),
            tracing: if tracing { Ok(()) } else { Err("refused with EPERM".into()) },
            cgroup_getpeername: Ok(()),
        }
    }

    fn hook(plan: &Plan, mark: &str) -> Option<String> {
        plan.lines.iter().find(|line| line.mark == mark).and_then(|line| line.hook.clone())
    }

    #[test]
    fn without_tracing_raw_tracepoints_and_getpeername_serve() {
        let plan = plan(&facts(&TRACEPOINTS, false));
        assert!(plan.complete());
        assert_eq!(hook(&plan, "s2").unwrap(), "cgroup/getpeername");
        assert_eq!(hook(&plan, "s4").unwrap(), "raw_tracepoint/tcp_sendmsg_locked");
    }

    #[test]
    fn without_sock_tracepoints_fentry_and_fexit_serve() {
        let old: Vec<&str> = TRACEPOINTS
            .into_iter()
            .filter(|name| name.starts_with("sched") || name.starts_with("inet"))
            .chain(["tcp_destroy_sock"])
            .collect();
        let plan = plan(&facts(&old, true));
        assert!(plan.complete());
        assert_eq!(hook(&plan, "s1").unwrap(), "fentry/sock_def_readable");
        assert_eq!(hook(&plan, "s2").unwrap(), "fexit/inet_csk_accept");
        assert_eq!(hook(&plan, "s3").unwrap(), "fexit/tcp_recvmsg");
        assert_eq!(hook(&plan, "s5").unwrap(), "fexit/tcp_sendmsg");
    }

    #[test]
    fn what_cannot_be_served_says_why() {
        let some: Vec<&str> =
            TRACEPOINTS.into_iter().filter(|&name| name != "tcp_sendmsg_locked").collect();
        let plan = plan(&facts(&some, false));
        assert!(!plan.complete());
        let line = plan.lines.iter().find(|line| line.mark == "s4").unwrap();
        let reason = line.reason.as_deref().unwrap();
        assert!(reason.contains("tcp_sendmsg_locked") && reason.contains("EPERM"), "{reason}");
        assert!(!plan.serves("c3k, c4k"));
        assert!(plan.serves("database round trips"));
    }

    #[test]
    fn every_program_is_loaded_once() {
        for tracing in [false, true] {
            let plan = plan(&facts(&TRACEPOINTS, tracing));
            let mut names: Vec<&str> = plan.hooks.iter().map(|h| h.program).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}
