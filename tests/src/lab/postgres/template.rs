//! The data directory that every start copies: made once per Postgres version and content.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::lab::paths;
use crate::lab::program::Program;
use crate::lab::user::{self, Identity};

use super::{Directory, STUDY};

/// The table as Django's migration makes it (a test compares them), filled without randomness so
/// that every template holds the same rows. The primary key comes last: sorted once, not by insert.
/// FREEZE and ANALYZE here: autovacuum has nothing to do during a run.
const CONTENT: &str = r#"
CREATE TABLE "posts_post" ("id" uuid NOT NULL, "title" varchar(100) NOT NULL, "content" text NOT NULL, "created_at" timestamp with time zone NOT NULL, "updated_at" timestamp with time zone NOT NULL);

INSERT INTO posts_post SELECT md5('id' || i)::uuid, 'Post ' || left(letters, 10), 'Content ' || left(repeat(letters, 4), 100), made, made FROM (SELECT i, timestamptz '2023-01-01' + i * interval '1 second' AS made, translate(md5(i::text), '0123456789', 'ghijklmnop') AS letters FROM generate_series(1, ROWS) AS i OFFSET 0) AS computed_once;

ALTER TABLE posts_post ADD PRIMARY KEY (id);

VACUUM (FREEZE, ANALYZE) posts_post;

SELECT count(*) AS made FROM posts_post;

"#;

/// Settings while the template is made. Nothing of it is used afterwards, and it is synced at the
/// end: speed is all that matters here.
const FAST: [&str; 7] = [
    "fsync=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "maintenance_work_mem=256MB",
    // Small: what is left of the log is copied at every start.
    "min_wal_size=32MB",
    "max_wal_size=64MB",
    "log_checkpoints=off",
];

/// Raise it when this file changes what a template holds other than through [`CONTENT`].
const REVISION: u32 = 2;

/// One of Postgres' programs, of the newest version installed.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    let debian = Path::new("/usr/lib/postgresql");
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(debian)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let version = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let path = debian.join(format!("{version}/bin/{name}"));
            path.exists().then_some((version, path))
        })
        .collect();
    versions.sort();
    match versions.pop() {
        Some((_, path)) => Ok(path),
        None => paths::system(name),
    }
}

/// A template, locked: nobody replaces it while it is copied.
pub(super) struct Template {
    pub(super) path: PathBuf,
    _lock: Flock<File>,
}

/// The template with so many rows; made if there is none.
pub(super) fn get(rows: u32) -> Result<Template> {
    let identity = user::database()?;
    let base = base(identity)?;
    let postgres = program("postgres")?;
    let version = Program::new(&postgres).arg("--version").identity(identity).run()?;
    let mut hasher = DefaultHasher::new();
    (CONTENT, REVISION, &version).hash(&mut hasher);
    let template = base.join(format!("template-{rows}-{:016x}", hasher.finish()));

    // Others may make or copy the same one right now.
    let scratch = paths::scratch();
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("cannot create {}", scratch.display()))?;
    let lock = scratch.join("template.lock");
    let file = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
    let held = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", lock.display()))?;
    let shell = Shell { identity };
    if shell.exists(&template)? {
        return Ok(Template { path: template, _lock: held });
    }
    // Older ones with as many rows, and what an interrupted attempt left.
    shell.sh(
        r#"rm -rf -- "$1"/template-"$2"-* "$1"/making-*"#,
        &[base.as_os_str(), rows.to_string().as_ref()],
    )?;
    let making = Directory { path: base.join(format!("making-{rows}")), identity };
    make(&making.path, rows, identity)
        .with_context(|| format!("cannot make a database of {rows} rows"))?;
    shell.sh(r#"mv -T -- "$1" "$2""#, &[making.path.as_os_str(), template.as_os_str()])?;
    Ok(Template { path: template, _lock: held })
}

fn make(directory: &Path, rows: u32, identity: Identity) -> Result<()> {
    let shell = Shell { identity };
    Program::new("/bin/sh")
        .arg("-c")
        .arg(
            r#"umask 077; trap 'rm -f -- "$2.pw"' EXIT; printf %s "$3" > "$2.pw"
            "$1" -D "$2" -U "$3" --pwfile="$2.pw" -A scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync"#,
        )
        .arg("initdb")
        .arg(program("initdb")?)
        .arg(directory)
        .arg(STUDY)
        .identity(identity)
        .directory("/")
        .run()?;
    shell.sh(
        r#"printf 'host all all %s scram-sha-256\n' 0.0.0.0/0 ::/0 >> "$1/pg_hba.conf""#,
        &[directory.as_os_str()],
    )?;
    single_user(directory, "postgres", &format!("CREATE DATABASE {STUDY};\n\n"), identity)?;
    let said =
        single_user(directory, STUDY, &CONTENT.replace("ROWS", &rows.to_string()), identity)?;
    let expected = format!("made = \"{rows}\"");
    if !said.contains(&expected) {
        bail!("Postgres did not say `{expected}` but:\n{said}");
    }
    Program::new(program("initdb")?)
        .arg("--sync-only")
        .arg("-D")
        .arg(directory)
        .identity(identity)
        .directory("/")
        .run()?;
    Ok(())
}

/// Runs statements, each ended by a semicolon and an empty line, without a server or a socket.
fn single_user(directory: &Path, database: &str, sql: &str, identity: Identity) -> Result<String> {
    let mut program = Program::new("/bin/sh")
        .arg("-c")
        .arg(r#"sql="$1"; shift; printf %s "$sql" | exec "$@" 2>&1"#)
        .arg("postgres")
        .arg(sql)
        .arg(program("postgres")?)
        .args(["--single", "-j", "-D"])
        .arg(directory);
    for setting in FAST {
        program = program.args(["-c", setting]);
    }
    let said = program.arg(database).identity(identity).directory("/").run()?;
    // It goes on after an error and exits with 0.
    if ["ERROR:", "FATAL:", "PANIC:"].iter().any(|word| said.contains(word)) {
        bail!("Postgres said:\n{said}");
    }
    Ok(said)
}

/// Commands as whoever Postgres runs as: only they can look into its directories.
struct Shell {
    identity: Identity,
}

impl Shell {
    fn sh(&self, script: &str, args: &[&std::ffi::OsStr]) -> Result<String> {
        Program::new("/bin/sh")
            .args(["-c", script, "sh"])
            .args(args.iter().copied())
            .identity(self.identity)
            .directory("/")
            .run()
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let said = self.sh(r#"test -e "$1" && echo yes || echo no"#, &[path.as_os_str()])?;
        Ok(said == "yes")
    }
}

/// The directory that holds templates and copies, which Postgres' user owns: in the scratch space, or
/// in /var/tmp when that user cannot get there (a clone in root's home).
fn base(identity: Identity) -> Result<PathBuf> {
    let me = user::invoker();
    let scratch = paths::scratch();
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("cannot create {}", scratch.display()))?;
    let shell = Shell { identity };
    let reachable = shell.sh(r#"test -x "$1" && echo yes || echo no"#, &[scratch.as_os_str()])?;
    let base = if reachable == "yes" {
        scratch.join("postgres")
    } else {
        PathBuf::from(format!("/var/tmp/dwell-lab-{}", identity.uid))
    };
    if !base.exists() {
        std::fs::create_dir(&base).with_context(|| format!("cannot create {}", base.display()))?;
        if identity != me {
            std::os::unix::fs::chown(
                &base,
                Some(identity.uid.as_raw()),
                Some(identity.gid.as_raw()),
            )
            .with_context(|| format!("cannot give {} to {}", base.display(), identity.uid))?;
        }
    }
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::symlink_metadata(&base)?);
    if owner != identity.uid.as_raw() {
        bail!("{} belongs to user {owner}, not to {}; remove it", base.display(), identity.uid);
    }
    Ok(base)
}
