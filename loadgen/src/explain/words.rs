//! Numbers as people say them.

/// A time given in milliseconds, to three digits or so: `0.42 ms`, `43.2 ms`, `643 ms`, `1.64 s`.
pub(crate) fn ms(ms: f64) -> String {
    let size = ms.abs();
    if size >= 99_950.0 {
        format!("{:.0} s", ms / 1e3)
    } else if size >= 9_995.0 {
        format!("{:.1} s", ms / 1e3)
    } else if size >= 999.5 {
        format!("{:.2} s", ms / 1e3)
    } else if size >= 99.95 {
        format!("{ms:.0} ms")
    } else if size >= 9.995 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.2} ms")
    }
}

/// A rate per second, to three digits or so: `0.61`, `23.4`, `1240`.
pub(crate) fn rate(rate: f64) -> String {
    count(rate, 2)
}

/// A mean of a number of things: `8`, `7.96`, `98.3`.
pub(crate) fn mean(mean: f64) -> String {
    if (mean - mean.round()).abs() < 0.005 { format!("{mean:.0}") } else { count(mean, 2) }
}

fn count(number: f64, digits: usize) -> String {
    let size = number.abs();
    if size >= 99.95 {
        format!("{number:.0}")
    } else if size >= 9.995 {
        format!("{number:.1}")
    } else {
        format!("{number:.digits$}")
    }
}

/// A share: `98 %`, `1.4 %`, `0 %`.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent.abs() >= 9.95 || percent.abs() < 0.05 {
        format!("{percent:.0} %")
    } else {
        format!("{percent:.1} %")
    }
}

/// A whole number of things: `1 success`, `1627 requests`.
pub(crate) fn number(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// An HTTP status with its name, where RFC 9110 or common use has one: `501 Not Implemented`.
pub(crate) fn status(code: u16) -> String {
    let name = match code {
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => return code.to_string(),
    };
    format!("{code} {name}")
}

/// `1 worker`, `2 workers`, `7.96 round trips`.
pub(crate) fn several(number: f64, one: &str, many: &str) -> String {
    let text = mean(number);
    let noun = if text == "1" { one } else { many };
    format!("{text} {noun}")
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// A wait class of a worker, as what it was doing.
pub(crate) fn doing(class: &str) -> &str {
    match class {
        "cpu" => "computing",
        "runqueue" => "waiting for a processor",
        "database" => "waiting for the database",
        "lock" => "waiting for a lock",
        "client_io" => "waiting for the client's socket",
        "disk" => "waiting for the disk",
        "sleep" => "sleeping",
        "idle" => "idle",
        _ => "waiting for something else",
    }
}

/// A kind of database round trip, as what it is for.
pub(crate) fn purpose(kind: &str) -> &str {
    match kind {
        "tcp_connect" => "TCP connect",
        "ssl_request" => "SSL request",
        "tls" => "TLS",
        "startup" => "startup",
        "auth" => "authentication",
        "session_setup" => "session settings",
        "begin" => "BEGIN",
        "query" => "query",
        "commit" => "COMMIT",
        "rollback" => "ROLLBACK",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0.0, 0.4249, 9.996, 43.21, 99.96, 642.6, 999.6, 1_643.0, 83_210.0, 820_000.0].map(ms),
            [
                "0.00 ms", "0.42 ms", "10.0 ms", "43.2 ms", "100 ms", "643 ms", "1.00 s", "1.64 s",
                "83.2 s", "820 s"
            ]
        );
        assert_eq!([0.6086, 23.04, 1240.4].map(rate), ["0.61", "23.0", "1240"]);
        assert_eq!([8.0, 7.996, 7.96, 98.3].map(mean), ["8", "8", "7.96", "98.3"]);
        assert_eq!([0.98, 0.014, 0.0001, 1.0].map(percent), ["98 %", "1.4 %", "0 %", "100 %"]);
        assert_eq!(several(1.0, "worker", "workers"), "1 worker");
        assert_eq!(list(&["a".into(), "b".into(), "c".into()]), "a, b and c");
    }
}
