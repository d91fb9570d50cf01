//! Turns of database connections: any bytes, any lengths, any order.
#![no_main]

use agent::model::postgres::{Decoded, Decoder};
use agent_common::abi::{ANSWER_LEN, PAYLOAD_LEN, Tuple, Turn, kind};
use libfuzzer_sys::fuzz_target;

/// Head of a turn in the input: connection, ordinal, flags, length of the payload (2), answer.
const HEAD: usize = 6;

fuzz_target!(|data: &[u8]| {
    let mut decoder = Decoder::default();
    let mut rest = data;
    while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
        let claimed = u16::from_le_bytes([head[3], head[4]]) as usize % (PAYLOAD_LEN + 32);
        let (payload, next) = after.split_at(claimed.min(after.len()).min(PAYLOAD_LEN));
        rest = next;
        let mut turn = Turn {
            kind: kind::DB_TURN,
            flags: head[2].into(),
            conn: (head[0] % 4).into(),
            tuple: Tuple::default(),
            ordinal: (head[1] % 4).into(),
            tid: 1,
            held_conn: 0,
            sent_first: 1,
            sent_last: 1,
            answered: (head[5] & 1).into(),
            received_last: 1,
            tx_bytes: payload.len() as u64,
            rx_bytes: 1,
            // As the kernel half would never have it, too.
            payload_len: claimed as u32,
            answer_len: (head[5] >> 1).into(),
            payload: [0; PAYLOAD_LEN],
            answer: [head[5]; ANSWER_LEN],
        };
        turn.payload[..payload.len()].copy_from_slice(payload);
        if let Decoded::RoundTrip { statement: Some(text), .. } = decoder.turn(&turn) {
            assert!(!text.is_empty());
            assert!(text.len() <= agent_common::wire::MAX_TEXT, "{} bytes", text.len());
        }
    }
});
