use proptest::prelude::*;

use super::*;

fn text(sql: &str) -> String {
    normalise(sql, false).text
}

#[test]
fn literals_go() {
    for (sql, expected) in [
        ("SELECT 1", "SELECT ?"),
        ("select * from t where a='x'", "select * from t where a=?"),
        ("SELECT 'it''s', E'a\\'b', $$raw$$, $t$x$$y$t$", "SELECT ?"),
        ("SELECT B'01', X'FF', U&'\\0041', N'n'", "SELECT ?"),
        ("SELECT 1.5e-7 + .5 + 0x1F + 1_000", "SELECT ? + ? + ? + ?"),
        ("SELECT a -- secret\n FROM t /* se/*cr*/et */ LIMIT 25", "SELECT a FROM t LIMIT ?"),
        ("SELECT a.b1 FROM \"T 1\" a", "SELECT a.b1 FROM \"T 1\" a"),
        ("SELECT x FROM t WHERE y = $1 AND z = $2", "SELECT x FROM t WHERE y = ? AND z = ?"),
        ("SAVEPOINT \"s139929393_x1\"", "SAVEPOINT \"sN_x1\""),
        ("SELECT a10010$b, a10010$", "SELECT aN$b, aN$"),
        ("SELECT a - 5, -7", "SELECT a - ?, ?"),
        ("  select\n\t1  ", "select ?"),
        ("select a ,b from t where( a = 1 )", "select a, b from t where(a = ?)"),
        ("", ""),
    ] {
        assert_eq!(text(sql), expected, "{sql}");
    }
}

#[test]
fn lists_fold() {
    for (sql, expected) in [
        ("a IN (1, 2,3 , -4)", "a IN (?)"),
        ("a IN ('x'::uuid, 'y'::uuid)", "a IN (?::uuid)"),
        ("a IN (1)", "a IN (?)"),
        ("INSERT INTO t (a, b) VALUES (1, 'x'), (2, 'y')", "INSERT INTO t (a, b) VALUES (?)"),
        ("VALUES ('a'::uuid, 'b', 3)", "VALUES (?::uuid, ?)"),
        ("VALUES ($1, DEFAULT, $2)", "VALUES (?, DEFAULT, ?)"),
        ("ARRAY[1, 2]", "ARRAY[?]"),
        ("f(a, 1, 2)", "f(a, ?)"),
    ] {
        assert_eq!(text(sql), expected, "{sql}");
    }
}

#[test]
fn what_cannot_be_told_to_end_is_dropped() {
    for (sql, cut, expected) in [
        ("SELECT 'secr", true, "SELECT ?…"),
        ("SELECT $tag$secret $ta", true, "SELECT ?…"),
        ("SELECT $ta", true, "SELECT ?…"),
        ("SELECT a, \"nam", true, "SELECT a,…"),
        ("SELECT a FROM blog_po", true, "SELECT a FROM…"),
        ("SELECT a WHERE b = 12", true, "SELECT a WHERE b = ?…"),
        ("SELECT a /* secr", true, "SELECT a…"),
        ("SELECT a, E", true, "SELECT a,…"),
        // Ends at a different quote when standard_conforming_strings is off.
        ("SELECT 'a\\'' , 'secret'", false, "SELECT ?…"),
        ("SELECT 'C:\\dir'", false, "SELECT ?"),
    ] {
        assert_eq!(normalise(sql, cut).text, expected, "{sql}");
    }
}

#[test]
fn kinds() {
    for (sql, kind) in [
        ("BEGIN", DbKind::Begin),
        ("start transaction isolation level serializable", DbKind::Begin),
        ("COMMIT", DbKind::Commit),
        ("END;", DbKind::Commit),
        ("ROLLBACK", DbKind::Rollback),
        ("ROLLBACK TO SAVEPOINT s", DbKind::Query),
        ("SET TIME ZONE 'UTC'", DbKind::SessionSetup),
        ("SHOW default_transaction_isolation", DbKind::SessionSetup),
        ("RESET ALL", DbKind::SessionSetup),
        ("DISCARD ALL", DbKind::SessionSetup),
        ("SELECT set_config('TimeZone', 'UTC', false)", DbKind::SessionSetup),
        ("SELECT pg_catalog.set_config('a', 'b', false)", DbKind::SessionSetup),
        ("/* hint */ SELECT 1", DbKind::Query),
        ("SELECT set_config FROM t", DbKind::Query),
        ("BEGIN; INSERT INTO t VALUES (1)", DbKind::Query),
        ("SET a = 1; BEGIN", DbKind::Begin),
        ("", DbKind::Other),
        (" ; ; ", DbKind::Other),
    ] {
        assert_eq!(normalise(sql, false).kind, kind, "{sql}");
    }
}

/// A literal and the words that must not survive it.
fn literal() -> impl Strategy<Value = (String, String)> {
    let secret = "zq[a-z]{6}";
    let noise = "[ ,;()a-z0-9/*$\"-]{0,6}";
    prop_oneof![
        (secret, noise).prop_map(|(s, n)| (format!("'{s}{n}''{s}'"), s)),
        (secret, noise).prop_map(|(s, n)| (format!("E'{n}\\'{s}\\\\'"), s)),
        (secret, "[a-z]{0,3}").prop_map(|(s, t)| (format!("$_{t}$'{s}\" /*$_{t}$"), s)),
        (secret, noise).prop_map(|(s, n)| (format!("$${s}'{}$$", n.replace('$', "")), s)),
        secret.prop_map(|s| (format!("U&'{s}'"), s)),
        (100_000_u64..).prop_map(|n| (n.to_string(), n.to_string())),
        (100_000_u32.., 0_u8..30).prop_map(|(n, e)| (format!("{n}.5e-{e}"), n.to_string())),
        (0x10_0000_u32..).prop_map(|n| (format!("0x{n:x}"), format!("{n:x}"))),
    ]
}

fn statement() -> impl Strategy<Value = (String, Vec<String>)> {
    let shape = prop_oneof![
        Just(("SELECT a FROM t WHERE b = ", " AND c > ", "")),
        Just(("INSERT INTO t (a, b) VALUES (", ", ", ")")),
        Just(("select x from t where y in(", ",", ")")),
        Just(("UPDATE \"T x\" SET a=", "::text, b=", " /* note */ RETURNING id")),
        Just(("SELECT f(", " -- c\n, ", ") LIMIT 1")),
    ];
    (shape, proptest::collection::vec(literal(), 1..8)).prop_map(|((head, between, tail), all)| {
        let (sql, secrets): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        (format!("{head}{}{tail}", sql.join(between)), secrets)
    })
}

proptest! {
    #[test]
    fn no_literal_survives((sql, secrets) in statement()) {
        let text = text(&sql);
        for secret in secrets {
            prop_assert!(!text.contains(&secret), "{secret} of {sql} is in {text}");
        }
    }

    #[test]
    fn no_literal_survives_a_cut((sql, secrets) in statement(), at in 0.0..1.0) {
        let cut = &sql[..(sql.len() as f64 * at) as usize];
        let text = normalise(cut, true).text;
        for secret in secrets {
            // Half of a secret is one too.
            prop_assert!(!text.contains(&secret[..5]), "{secret} of {cut} is in {text}");
        }
    }

    #[test]
    fn normalising_twice_changes_nothing(sql in "\\PC*", cut: bool) {
        let once = normalise(&sql, cut).text;
        prop_assert_eq!(&text(&once), &once);
    }

    #[test]
    fn normalising_sql_twice_changes_nothing((sql, _) in statement(), at in 0.0..1.0) {
        let once = normalise(&sql[..(sql.len() as f64 * at) as usize], true).text;
        prop_assert_eq!(&text(&once), &once);
    }

    #[test]
    fn tokens_twice_change_nothing(sql in "(10010|[-a1?(),;:$'\"/*\\\\ .#\n\\[\\]]){0,24}", cut: bool) {
        let once = normalise(&sql, cut).text;
        prop_assert_eq!(&text(&once), &once);
    }
}
