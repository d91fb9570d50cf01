//! Reads what `/proc/PID/stat` says of a process.

/// A living process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its parent; 0 if that is in no namespace that we see.
    pub parent: u32,
    /// When it started, in clock ticks since boot: tells it from a later one of the same pid.
    pub started: u64,
}

/// None for a dead one that waits to be reaped, and for what is no such file. The name in it may hold
/// anything, closing brackets included, so fields count from the last of those.
#[must_use]
pub fn parse(stat: &str) -> Option<Stat> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    // Field 3; then 4, and 22 of proc_pid_stat(5).
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    Some(Stat { parent, started: fields.nth(17)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REST: &str = "S 41 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 424242 20 21";

    proptest! {
        #[test]
        fn no_name_shifts_the_fields(name in "\\PC*") {
            let stat = parse(&format!("7 ({name}) {REST}"));
            prop_assert_eq!(stat, Some(Stat { parent: 41, started: 424_242 }));
        }

        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = parse(&text);
        }
    }

    #[test]
    fn the_dead_are_none() {
        assert_eq!(parse(&format!("7 (a) Z 1 (b) {}", REST.replace('S', "Z"))), None);
        assert_eq!(parse("7 (a"), None);
        assert_eq!(parse("7 (a) S 1"), None);
    }
}
