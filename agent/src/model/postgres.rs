//! What a turn on a Postgres connection was, from the head of the bytes that were sent. The messages
//! are those of "Frontend/Backend Protocol" in Postgres's manual.

use std::collections::HashMap;

use agent_common::{
    abi::{MAX_TURNS, Turn, flag},
    wire::DbKind,
};

use super::sql;

mod messages;

use messages::{First, Message};

/// Prepared statements remembered per connection.
const MAX_PREPARED: usize = 1_000;

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
}

/// Follows every database connection of a session.
#[derive(Debug, Default)]
pub struct Decoder {
    connections: HashMap<u64, Connection>,
    oddities: Oddities,
}

#[derive(Debug, Default)]
struct Connection {
    encrypted: bool,
    prepared: HashMap<Vec<u8>, Statement>,
}

#[derive(Clone, Debug)]
struct Statement {
    kind: DbKind,
    text: String,
}

impl Decoder {
    /// Names one turn. Turns of a connection must come in order; the last one ([`flag::CLOSED`])
    /// ends what is remembered of it.
    pub fn turn(&mut self, turn: &Turn) -> Decoded {
        let mut connection = self.connections.remove(&turn.conn).unwrap_or_default();
        let decoded = connection.turn(turn, &mut self.oddities);
        // Beyond the kernel half's own limit nothing is remembered: names may be missing then.
        if turn.flags & flag::CLOSED == 0 && self.connections.len() < MAX_TURNS as usize {
            self.connections.insert(turn.conn, connection);
        }
        decoded
    }

    /// What was odd so far.
    #[must_use]
    pub fn oddities(&self) -> Oddities {
        self.oddities
    }
}

impl Connection {
    fn turn(&mut self, turn: &Turn, oddities: &mut Oddities) -> Decoded {
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
        self.typed(sent, oddities)
    }

    /// A turn of messages that start with their type.
    fn typed(&mut self, sent: &[u8], oddities: &mut Oddities) -> Decoded {
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
                    if self.prepared.len() < MAX_PREPARED || self.prepared.contains_key(name) {
                        self.prepared.insert(name.to_vec(), statement.clone());
                    }
                    parsed_here.push(name);
                    statements.push(statement);
                }
                Message::Bind { name } if parsed_here.contains(&name) => {}
                Message::Bind { name } => match self.prepared.get(name) {
                    Some(statement) => statements.push(statement.clone()),
                    None => unknown = true,
                },
                Message::Close { name } => {
                    self.prepared.remove(name);
                    others = true;
                }
                Message::Terminate => terminate = true,
                Message::Other => others = true,
                Message::Unknown => {
                    oddities.undecoded += 1;
                    return plain(DbKind::Other);
                }
            }
        }
        if unknown {
            oddities.unknown_prepared += 1;
        }
        let Some(kind) = statements.iter().map(|s| s.kind).max_by_key(|kind| sql::weight(*kind))
        else {
            return match (unknown, terminate && !others) {
                (true, _) => plain(DbKind::Query),
                (false, true) => Decoded::Terminate,
                (false, false) => plain(DbKind::Other),
            };
        };
        let mut texts: Vec<String> = statements.into_iter().map(|s| s.text).collect();
        texts.dedup();
        texts.retain(|text| !text.is_empty());
        let statement = (!texts.is_empty()).then(|| texts.join("; "));
        Decoded::RoundTrip { kind, statement }
    }
}

impl Statement {
    fn new(text: &[u8], cut: bool) -> Self {
        let sql::Normalised { text, kind } = sql::normalise(&String::from_utf8_lossy(text), cut);
        Self { kind, text }
    }
}

#[cfg(test)]
mod tests;
