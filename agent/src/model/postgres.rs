//! What a turn on a Postgres connection was, from the head of the bytes that were sent. The messages
//! are those of "Frontend/Backend Protocol" in Postgres's manual.

use std::collections::HashMap;
use std::sync::Arc;

use agent_common::{
    abi::{MAX_TURNS, Turn, flag},
    wire::DbKind,
};

use super::{sql, text};

mod messages;

use messages::{First, Message};

/// Prepared statements remembered per connection.
const MAX_PREPARED: usize = 1_000;
/// Prepared statements remembered in all, and what they may take.
const MAX_KEPT: Kept = Kept { statements: 50_000, bytes: 32 << 20 };
/// What a statement takes besides its name and text, roughly.
const OVERHEAD: usize = 128;

/// What a turn was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Something was asked and an answer is due.
    RoundTrip {
        /// What it was.
        kind: DbKind,
        /// Its statements, literals removed, where they were seen.
        statement: Option<String>,
    },
    /// The connection was closed in good order: no answer comes.
    Terminate,
}

/// What is odd about a stream, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Executions of a statement that was prepared unseen.
    pub unknown_prepared: u64,
    /// Turns that are no Postgres messages, or start in the middle of one.
    pub undecoded: u64,
    /// Prepared statements that were not remembered, or were forgotten with their connection, since
    /// there were too many: their executions count as of an unknown one.
    pub unkept_prepared: u64,
}

/// Follows every database connection of a session.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Those of which something is remembered.
    connections: HashMap<u64, Connection>,
    all: Shared,
    turns: u64,
}

/// What the connections of a session have in common.
#[derive(Debug, Default)]
struct Shared {
    oddities: Oddities,
    kept: Kept,
}

/// Prepared statements that are remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kept {
    statements: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Connection {
    encrypted: bool,
    prepared: HashMap<Box<[u8]>, Statement>,
    /// Number of its last turn in the session.
    used: u64,
}

#[derive(Clone, Debug)]
struct Statement {
    kind: DbKind,
    text: Arc<str>,
}

impl Decoder {
    /// Names one turn. Turns of a connection must come in order; the last one ([`flag::CLOSED`])
    /// ends what is remembered of it.
    pub fn turn(&mut self, turn: &Turn) -> Decoded {
        let mut connection = self.connections.remove(&turn.conn).unwrap_or_default();
        let decoded = connection.turn(turn, &mut self.all);
        self.turns += 1;
        connection.used = self.turns;
        if turn.flags & flag::CLOSED != 0 {
            connection.forget(&mut self.all);
        } else if connection.encrypted || !connection.prepared.is_empty() {
            self.make_room();
            self.connections.insert(turn.conn, connection);
        }
        decoded
    }

    /// The kernel half follows [`MAX_TURNS`] connections at once; the end of one may go unseen. The
    /// one that was silent for longest is taken for dead.
    fn make_room(&mut self) {
        if self.connections.len() < MAX_TURNS as usize {
            return;
        }
        let oldest = self.connections.iter().min_by_key(|(_, connection)| connection.used);
        let Some(oldest) = oldest.map(|(conn, _)| *conn) else { return };
        if let Some(mut dead) = self.connections.remove(&oldest) {
            self.all.oddities.unkept_prepared += dead.prepared.len() as u64;
            dead.forget(&mut self.all);
        }
    }

    /// What was odd so far.
    #[must_use]
    pub fn oddities(&self) -> Oddities {
        self.all.oddities
    }
}

impl Kept {
    fn size(name: &[u8], statement: &Statement) -> usize {
        name.len() + statement.text.len() + OVERHEAD
    }

    fn add(&mut self, name: &[u8], statement: &Statement) {
        self.statements += 1;
        self.bytes += Self::size(name, statement);
    }

    fn remove(&mut self, name: &[u8], statement: &Statement) {
        self.statements -= 1;
        self.bytes -= Self::size(name, statement);
    }

    fn is_full(&self) -> bool {
        self.statements >= MAX_KEPT.statements || self.bytes >= MAX_KEPT.bytes
    }
}

impl Connection {
    fn turn(&mut self, turn: &Turn, all: &mut Shared) -> Decoded {
        let sent = turn.payload.get(..turn.payload_len as usize).unwrap_or_default();
        let answer = turn.answer.get(..turn.answer_len as usize).unwrap_or_default();
        let plain = |kind| Decoded::RoundTrip { kind, statement: None };

        if turn.ordinal == 0 && sent.is_empty() && turn.tx_bytes == 0 {
            return plain(DbKind::TcpConnect);
        }
        if self.encrypted || messages::is_tls_record(sent) {
            self.encrypted = true;
            // The last record before the end asks for nothing: it is the closing alert.
            let last = turn.flags & flag::CLOSED != 0 && turn.answered == 0;
            return if last { Decoded::Terminate } else { plain(DbKind::Tls) };
        }
        if sent.is_empty() {
            return plain(DbKind::Other);
        }
        match messages::first(sent) {
            Some(First::EncryptionRequest) => {
                // S: TLS follows; G: GSSAPI encryption follows; N: neither.
                self.encrypted = matches!(answer.first(), Some(b'S' | b'G'));
                return plain(DbKind::SslRequest);
            }
            Some(First::Startup) => return plain(DbKind::Startup),
            Some(First::Cancel) => return plain(DbKind::Other),
            None => {}
        }
        self.typed(sent, all)
    }

    fn remember(&mut self, name: &[u8], statement: &Statement, all: &mut Shared) {
        self.forget_one(name, all);
        if self.prepared.len() >= MAX_PREPARED || all.kept.is_full() {
            all.oddities.unkept_prepared += 1;
            return;
        }
        all.kept.add(name, statement);
        self.prepared.insert(name.into(), statement.clone());
    }

    fn forget_one(&mut self, name: &[u8], all: &mut Shared) {
        if let Some(statement) = self.prepared.remove(name) {
            all.kept.remove(name, &statement);
        }
    }

    fn forget(&mut self, all: &mut Shared) {
        for (name, statement) in self.prepared.drain() {
            all.kept.remove(&name, &statement);
        }
    }

    /// A turn of messages that start with their type.
    fn typed(&mut self, sent: &[u8], all: &mut Shared) -> Decoded {
        let plain = |kind| Decoded::RoundTrip { kind, statement: None };
        let mut statements: Vec<Statement> = Vec::new();
        let mut parsed_here: Vec<&[u8]> = Vec::new();
        let (mut unknown, mut terminate, mut others) = (false, false, false);
        for message in messages::typed(sent) {
            match message {
                Message::Auth => return plain(DbKind::Auth),
                Message::Query { text, cut } => statements.push(Statement::new(text, cut)),
                Message::Parse { name, text, cut } => {
                    let statement = Statement::new(text, cut);
                    self.remember(name, &statement, all);
                    parsed_here.push(name);
                    statements.push(statement);
                }
                Message::Bind { name } if parsed_here.contains(&name) => {}
                Message::Bind { name } => match self.prepared.get(name) {
                    Some(statement) => statements.push(statement.clone()),
                    None => unknown = true,
                },
                Message::Close { name } => {
                    self.forget_one(name, all);
                    others = true;
                }
                Message::Terminate => terminate = true,
                Message::Other => others = true,
                // What was found before it was still sent.
                Message::Unknown => {
                    all.oddities.undecoded += 1;
                    others = true;
                }
            }
        }
        if unknown {
            all.oddities.unknown_prepared += 1;
        }
        let Some(kind) = statements.iter().map(|s| s.kind).max_by_key(|kind| sql::weight(*kind))
        else {
            return match (unknown, terminate && !others) {
                (true, _) => plain(DbKind::Query),
                (false, true) => Decoded::Terminate,
                (false, false) => plain(DbKind::Other),
            };
        };
        let mut texts: Vec<&str> = Vec::new();
        for statement in &statements {
            if !statement.text.is_empty() && !texts.contains(&&*statement.text) {
                texts.push(&statement.text);
            }
        }
        let statement = (!texts.is_empty()).then(|| text::for_message(texts.join("; ")));
        Decoded::RoundTrip { kind, statement }
    }
}

impl Statement {
    fn new(text: &[u8], cut: bool) -> Self {
        let sql::Normalised { text, kind } = sql::normalise(&String::from_utf8_lossy(text), cut);
        Self { kind, text: text.into() }
    }
}

#[cfg(test)]
mod tests;
