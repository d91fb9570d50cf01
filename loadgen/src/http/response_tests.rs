use proptest::prelude::*;

use super::*;

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    error: Option<BadResponse>,
    used: usize,
    done: bool,
    status: u16,
    keep_alive: bool,
    eof: Eof,
}

fn read(parser: &mut Parser, pieces: &[&[u8]], head: bool) -> Outcome {
    let mut used = 0;
    let mut error = None;
    for piece in pieces {
        match parser.feed(piece, head) {
            Ok(n) => used += n,
            Err(e) => error = Some(e),
        }
        if error.is_some() || parser.is_done() {
            break;
        }
    }
    Outcome {
        error,
        used: if error.is_some() { 0 } else { used },
        done: parser.is_done(),
        status: parser.status(),
        keep_alive: parser.keep_alive(),
        eof: if error.is_some() { Eof::Truncated } else { parser.eof() },
    }
}

fn whole(text: &str) -> Outcome {
    read(&mut Parser::default(), &[text.as_bytes()], false)
}

fn good(text: &str, status: u16, keep_alive: bool) {
    let outcome = whole(&format!("{text}EXTRA"));
    let used = text.len();
    let expected =
        Outcome { error: None, used, done: true, status, keep_alive, eof: Eof::Complete };
    assert_eq!(outcome, expected, "{text:?}");
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n\
    5;x=\"y\"\r\nhello\r\nA \r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";

#[test]
fn every_framing_ends_where_it_should() {
    good("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, true);
    good("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, true);
    good("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nContent-Length: 2\r\n\r\nno", 404, true);
    good("HTTP/1.1 204 No Content\r\n\r\n", 204, true);
    good("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, true);
    good(CHUNKED, 200, true);
    good("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nab\n0\n\n", 200, true);
}

#[test]
fn informational_responses_are_passed_over() {
    let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
        HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx";
    good(text, 201, true);
    assert_eq!(
        whole("HTTP/1.1 101 Switching Protocols\r\n\r\n").error,
        Some(BadResponse::Switched)
    );
}

#[test]
fn keep_alive_follows_version_and_tokens() {
    let kept = |head: &str| whole(&format!("{head}\r\nContent-Length: 0\r\n\r\n")).keep_alive;
    assert!(kept("HTTP/1.1 200 OK"));
    assert!(!kept("HTTP/1.1 200 OK\r\nConnection: Close"));
    assert!(!kept("HTTP/1.1 200 OK\r\nConnection: x, close"));
    assert!(!kept("HTTP/1.0 200 OK"));
    assert!(kept("HTTP/1.0 200 OK\r\nConnection: Keep-Alive"));
    assert!(!kept("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity"));
    let both =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    good(both, 200, false);
}

#[test]
fn a_body_without_framing_ends_with_the_connection() {
    let outcome = whole("HTTP/1.0 200 OK\r\n\r\nsome bytes");
    assert!(!outcome.done && !outcome.keep_alive);
    assert_eq!(outcome.eof, Eof::Complete);
}

#[test]
fn an_early_end_is_truncation() {
    let complete = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    for cut in 0..complete.len() {
        assert_eq!(whole(&complete[..cut]).eof, Eof::Truncated, "{cut}");
    }
    for cut in 0..CHUNKED.len() {
        assert_eq!(whole(&CHUNKED[..cut]).eof, Eof::Truncated, "{cut}");
    }
}

#[test]
fn a_head_request_has_no_body() {
    let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let outcome = read(&mut Parser::default(), &[text], true);
    assert!(outcome.done);
    assert_eq!(outcome.used, text.len());
}

#[test]
fn garbage_is_refused() {
    let error = |text: &str| whole(text).error;
    assert_eq!(error("SSH-2.0-OpenSSH\r\n"), Some(BadResponse::Head));
    assert_eq!(error("HTTP/1.1 099 x\r\n\r\n"), Some(BadResponse::Head));
    let with = |line: &str| error(&format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n"));
    assert_eq!(with("Content-Length: -1"), Some(BadResponse::Length));
    assert_eq!(with("Content-Length: 99999999999999999999"), Some(BadResponse::Length));
    assert_eq!(with("Content-Length: 1\r\nContent-Length: 2"), Some(BadResponse::Length));
    let chunk =
        |body: &str| error(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
    assert_eq!(chunk("zz\r\n"), Some(BadResponse::Chunk));
    assert_eq!(chunk("\r\n"), Some(BadResponse::Chunk));
    assert_eq!(chunk("2\r\nabc\r\n"), Some(BadResponse::Chunk));
    assert_eq!(chunk("11111111111111111\r\n"), Some(BadResponse::Chunk));
    assert_eq!(chunk("2\rx"), Some(BadResponse::Chunk));
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(MAX_HEAD));
    assert_eq!(error(&long), Some(BadResponse::TooLong));
}

#[test]
fn a_parser_serves_one_response_after_the_other() {
    let mut parser = Parser::default();
    for (text, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", 200),
        (CHUNKED, 200),
        ("HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n", 500),
    ] {
        parser.reset();
        let (left, right) = text.as_bytes().split_at(20);
        let outcome = read(&mut parser, &[left, right], false);
        assert!(outcome.done, "{text}");
        assert_eq!(outcome.status, status);
    }
}

/// Mostly well-formed responses, sometimes with a byte changed.
fn responses() -> impl Strategy<Value = Vec<u8>> {
    let framed = prop_oneof![
        "[a-z]{0,40}".prop_map(|b| format!("Content-Length: {}\r\n\r\n{b}", b.len())),
        proptest::collection::vec("[a-z]{1,20}", 0..4).prop_map(|chunks| {
            let body: String = chunks.iter().map(|c| format!("{:x}\r\n{c}\r\n", c.len())).collect();
            format!("Transfer-Encoding: chunked\r\n\r\n{body}0\r\n\r\n")
        }),
        "[a-z]{0,40}".prop_map(|b| format!("X: y\r\n\r\n{b}")),
    ];
    let head = prop_oneof![
        Just("HTTP/1.1 200 OK\r\n"),
        Just("HTTP/1.0 404 x\r\nConnection: keep-alive\r\n"),
        Just("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 OK\r\nConnection: close\r\n"),
    ];
    let damage = proptest::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (head, framed, damage, "[a-z]{0,3}").prop_map(|(head, framed, damage, extra)| {
        let mut bytes = format!("{head}{framed}{extra}").into_bytes();
        if let Some((at, byte)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn any_split_gives_the_same_result(
        bytes in responses(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        head in proptest::bool::weighted(0.1),
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&bytes[from..cut]);
            from = cut;
        }
        pieces.push(&bytes[from..]);
        let expected = read(&mut Parser::default(), &[&bytes], head);
        let single: Vec<_> = bytes.chunks(1).collect();
        prop_assert_eq!(&read(&mut Parser::default(), &pieces, head), &expected);
        prop_assert_eq!(&read(&mut Parser::default(), &single, head), &expected);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = whole(&String::from_utf8_lossy(&bytes));
        let mut text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        text.extend(&bytes);
        let _ = read(&mut Parser::default(), &[&text], false);
    }
}
