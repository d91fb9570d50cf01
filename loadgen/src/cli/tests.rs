use super::*;

fn parse(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
    let all = ["loadgen", "run", "http://h:8000/x", "--users", "5", "--hold", "1s"];
    let cli = Cli::try_parse_from(all.iter().chain(arguments))?;
    let Verb::Run(args) = cli.verb else { panic!("not a run") };
    Ok(*args)
}

fn error(arguments: &[&str]) -> String {
    let error = parse(arguments).unwrap_err();
    assert_eq!(error.exit_code(), i32::from(EXIT_USAGE));
    error.to_string()
}

#[test]
fn the_command_line_of_the_study_is_understood() {
    let args = parse(&[
        "--ramp",
        "5/s",
        "--form",
        "title=Post {random:10}",
        "--form",
        "content=x",
        "--agent",
        "unix:/run/a.sock",
        "--delay",
        "100ms",
        "--setup",
        "sync",
        "--route",
        "io_create",
    ])
    .unwrap();
    assert_eq!((args.users, args.ramp, args.hold), (5, 5.0, Duration::from_secs(1)));
    assert_eq!(args.method(), "POST");
    assert_eq!(args.agent.as_deref(), Some(std::path::Path::new("/run/a.sock")));
    assert_eq!(args.name(), "sync/io_create/100ms");
    assert_eq!(args.timeout, None);
    assert!(matches!(args.db_ports(), Ok(ports) if ports == [5432]));
    assert_eq!(parse(&[]).unwrap().name(), "http://h:8000/x");
    assert_eq!(parse(&[]).unwrap().method(), "GET");
}

#[test]
fn bad_arguments_are_named_with_what_to_write() {
    assert!(error(&["--delay", "100ms"]).contains("--agent"), "{}", error(&["--delay", "1ms"]));
    assert!(error(&["--agent", "/run/a"]).contains("unix:PATH"));
    assert!(error(&["--agent", "unix:/a", "--delay", "0"]).contains("more than 0"));
    assert!(error(&["--agent", "unix:/a", "--delay=-1ms"]).contains("delay"));
    assert!(error(&["--ramp", "5/m"]).contains("5/s"));
    assert!(error(&["--ramp", "-1"]).contains("unexpected argument"));
    assert!(error(&["--timeout", "5"]).contains("timeout"));
    assert!(error(&["--nonsense"]).contains("--nonsense"));
    let https = Cli::try_parse_from(["loadgen", "run", "https://h/"]).unwrap_err().to_string();
    assert!(https.contains("https is not supported"), "{https}");
    let many = parse(&[
        "--agent",
        "unix:/a",
        "--db-port=1",
        "--db-port=2",
        "--db-port=3",
        "--db-port=4",
        "--db-port=5",
    ])
    .unwrap();
    assert!(matches!(many.db_ports(), Err(Stop::Usage(_))));
}

#[test]
fn the_command_line_holds_together() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
}

#[test]
fn hosts_are_resolved() {
    let target = Target::parse("http://127.0.0.1:81/").unwrap();
    assert_eq!(resolve(&target).unwrap(), ["127.0.0.1:81".parse().unwrap()]);
    let unknown = Target::parse("http://no-such-host.invalid/").unwrap();
    let text = format!("{:#}", resolve(&unknown).unwrap_err());
    assert!(text.contains("cannot resolve `no-such-host.invalid`"), "{text}");
}
