//! Finds a container's first process through `/proc`.

use std::fs;

use super::process;
use crate::model::container::{self, ContainerError, Inside};

/// The first process of the container whose id begins with `given`.
///
/// # Errors
/// No container fits, or several do.
pub fn first_process(given: &str) -> Result<Inside, ContainerError> {
    let all: Vec<Inside> = process::pids().into_iter().filter_map(inside).collect();
    container::first_process(given, &all)
}

/// Where a process is; None if it is in no container, or has just ended.
fn inside(pid: u32) -> Option<Inside> {
    let read = |file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let cgroup = read("cgroup")?;
    let id = container::id_of(&cgroup)?.to_owned();
    let inner_pid = container::inner_pid(&read("status")?)?;
    let started = process::stat(pid)?.started;
    Some(Inside { pid, inner_pid, started, id })
}
