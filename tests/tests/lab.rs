//! The laboratory itself: that it does what it says and leaves nothing. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::lab::{App, Lab, PostgresSpec, Program, Side, paths};

fn logs(name: &str) -> PathBuf {
    paths::scratch().join("logs").join(name)
}

/// What the laboratory makes on this machine, other than processes.
fn names(lab: &Lab) -> Vec<PathBuf> {
    [Side::Server, Side::Outside].iter().map(|side| lab.network().path(*side)).collect()
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Links of the host's own namespace.
fn links() -> String {
    Program::new(paths::system("ip").unwrap()).args(["-br", "link"]).run().unwrap()
}

#[test]
fn the_study_answers_through_the_veth_and_leaves_nothing() {
    let before = links();
    let mut lab = Lab::new(logs("study")).unwrap();
    let rows = 1000;
    lab.start_postgres(&PostgresSpec::study(rows)).unwrap();
    let mut pids = vec![lab.postgres().unwrap().process().pid()];
    for app in [App::StudySync, App::StudyAsync] {
        pids.push(lab.start_server(&app).unwrap().process().pid());
        let answer: serde_json::Value =
            serde_json::from_str(&lab.get("/io_read").unwrap()).unwrap();
        assert_eq!(answer["count"], rows, "{app:?}");
        assert_eq!(answer["posts"].as_array().unwrap().len(), 25, "{app:?}");
        let first = &answer["posts"][0];
        assert_eq!(first["title"].as_str().unwrap().len(), "Post ".len() + 10);
        assert_eq!(first["content"].as_str().unwrap().len(), "Content ".len() + 100);
    }
    assert_eq!(links(), before, "the host's own network changed");
    let names = names(&lab);
    assert!(names.iter().all(|name| name.exists()), "{names:?}");
    assert!(pids[1..2].iter().all(|pid| !alive(*pid)), "the replaced server still runs");
    assert!(alive(pids[0]) && alive(pids[2]));
    let data = lab.postgres().unwrap().data_directory().to_path_buf();
    assert!(data.exists());

    drop(lab);
    assert!(names.iter().all(|name| !name.exists()), "{names:?}");
    assert!(pids.iter().all(|pid| !alive(*pid)), "{pids:?}");
    assert!(!data.exists());
    assert_eq!(links(), before);
}

/// CREATE TABLE as PostgreSQL describes it: columns and indexes of the posts table.
const DESCRIBE: &str = "SELECT string_agg(format('%s %s %s', attname, format_type(atttypid, atttypmod), \
    attnotnull), ', ' ORDER BY attnum) FROM pg_attribute \
    WHERE attrelid = 'posts_post'::regclass AND attnum > 0 AND NOT attisdropped \
    UNION ALL SELECT indexdef FROM pg_indexes WHERE tablename = 'posts_post'";

#[test]
fn the_table_is_the_one_that_the_migration_makes() {
    let mut lab = Lab::new(logs("table")).unwrap();
    lab.start_postgres(&PostgresSpec::study(1000)).unwrap();
    let postgres = lab.postgres().unwrap();
    let query = |sql: &str| postgres.query(lab.network(), sql).unwrap();
    let ours = query(DESCRIBE);
    query("DROP TABLE posts_post");
    lab.outside(paths::python("python").unwrap())
        .directory(paths::app("study"))
        .env("DWELL_DB_HOST", postgres.host())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["manage.py", "migrate", "posts"])
        .run()
        .unwrap();
    assert_eq!(ours, query(DESCRIBE));
}

#[test]
fn the_database_speaks_scram_without_tls_and_keeps_its_defaults() {
    let mut lab = Lab::new(logs("settings")).unwrap();
    let mut spec = PostgresSpec::study(1000);
    spec.settings.push(("shared_preload_libraries".to_owned(), "pg_stat_statements".to_owned()));
    lab.start_postgres(&spec).unwrap();
    let postgres = lab.postgres().unwrap();
    let query = |sql: &str| postgres.query(lab.network(), sql).unwrap();
    for (setting, value) in [
        ("ssl", "off"),
        ("max_connections", "100"),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("shared_buffers", "128MB"),
        ("password_encryption", "scram-sha-256"),
        ("shared_preload_libraries", "pg_stat_statements"),
    ] {
        assert_eq!(query(&format!("SHOW {setting}")), value, "{setting}");
    }
    assert_eq!(
        query("SELECT DISTINCT left(rolpassword, 13) FROM pg_authid WHERE rolcanlogin"),
        "SCRAM-SHA-256"
    );
    assert_eq!(query("SELECT DISTINCT auth_method FROM pg_hba_file_rules"), "scram-sha-256");
}

#[test]
fn the_study_reads_and_writes_over_a_unix_socket_too() {
    let mut lab = Lab::new(logs("unix")).unwrap();
    let mut spec = PostgresSpec::study(1000);
    spec.unix_socket = true;
    lab.start_postgres(&spec).unwrap();
    lab.start_server(&App::StudySyncUnixSocket).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&lab.get("/io_read").unwrap()).unwrap();
    assert_eq!(answer["count"], 1000);
    let socket = lab.postgres().unwrap().socket_directory().unwrap().to_path_buf();
    assert!(socket.exists());
    drop(lab);
    assert!(!socket.exists());
}

#[test]
fn control_servers_take_the_time_that_they_are_told() {
    let mut lab = Lab::new(logs("control")).unwrap();
    for step in ["cpu", "sleep", "lock"] {
        lab.start_server(&App::Control { steps: format!("{step}:30") }).unwrap();
        let begun = Instant::now();
        let body = lab.get("/").unwrap();
        let outside_ms = begun.elapsed().as_secs_f64() * 1e3;
        let took: serde_json::Value = serde_json::from_str(body.trim()).unwrap();
        assert_eq!(took["took_ms"][0][0], step);
        let took_ms = took["took_ms"][0][1].as_f64().unwrap();
        assert!((29.9..outside_ms).contains(&took_ms), "{step}: {took_ms} of {outside_ms}");
    }
    // The query string overrules; what is sent early is part of the body.
    let body = lab.get("/?steps=send:5,sleep:1,send:2").unwrap();
    assert!(body.starts_with(".......\n{"), "{body}");
    let error = lab.get("/?steps=nap:5").unwrap_err().to_string();
    assert!(error.contains("400") && error.contains("unknown step 'nap'"), "{error}");
}

#[test]
fn a_server_that_cannot_start_is_an_error_with_its_log() {
    let mut lab = Lab::new(logs("broken")).unwrap();
    let error = lab.start_server(&App::StudySync).unwrap_err().to_string();
    assert!(error.contains("needs Postgres first"), "{error}");
    let mut spec = PostgresSpec::study(1000);
    spec.settings.push(("shared_buffers".to_owned(), "a lot".to_owned()));
    let error = lab.start_postgres(&spec).unwrap_err().to_string();
    assert!(error.contains("ended before it was ready"), "{error}");
    assert!(error.contains("invalid value for parameter \"shared_buffers\""), "{error}");
}

/// A namespace whose maker was killed disappears when the next laboratory is made, with all that
/// runs in it; one whose maker lives stays.
#[test]
fn what_a_killed_laboratory_left_is_removed_by_the_next() {
    let ip = || Program::new(paths::system("ip").unwrap()).identity(tests::lab::user::root());
    let mut maker = std::process::Command::new("true").spawn().unwrap();
    maker.wait().unwrap();
    let orphan = format!("dwell-{}-0-server", maker.id());
    ip().args(["netns", "add", &orphan]).run().unwrap();
    let mut inside = ip()
        .args(["netns", "exec", &orphan, "sleep", "600"])
        .spawn(&paths::scratch().join("orphan.log"))
        .unwrap();
    // It has to be in the namespace before anybody looks for it there.
    inside
        .wait_until(Duration::from_secs(5), || {
            !ip().args(["netns", "pids", &orphan]).run().unwrap().is_empty()
        })
        .unwrap();
    let lab = Lab::new(logs("sweep")).unwrap();
    assert!(!Path::new("/run/netns").join(&orphan).exists());
    let deadline = Instant::now() + Duration::from_secs(5);
    while inside.ended().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the orphan's program still runs");
    }
    assert!(names(&lab).iter().all(|name| name.exists()));
}
