//! The stream of a peer: frames, then messages of either direction.
#![no_main]
#![allow(clippy::expect_used, reason = "a failure is what the fuzzer looks for")]

use agent_common::wire::{self, Frames, ToAgent, ToLoadgen};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte says how the stream is cut.
    let Some((&step, stream)) = data.split_first() else { return };
    let mut frames = Frames::default();
    for read in stream.chunks(usize::from(step) + 1) {
        frames.push(read);
        loop {
            match frames.next_frame() {
                Ok(Some(body)) => {
                    assert!(body.len() <= wire::MAX_FRAME);
                    message(body);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    if let Some(preamble) = data.first_chunk::<8>() {
        let _ = wire::read_preamble(*preamble);
    }
    message(data);
});

fn message(body: &[u8]) {
    if let Ok(message) = wire::decode::<ToAgent>(body) {
        let _ = message.check();
        let mut again = Vec::new();
        wire::encode(&message, &mut again).expect("what was decoded fits a frame");
        assert_eq!(wire::decode::<ToAgent>(&again[4..]).expect("decodes again"), message);
    }
    if let Ok(message) = wire::decode::<ToLoadgen>(body) {
        let _ = message.check();
        let mut again = Vec::new();
        // Not compared as values: a mean can be NaN, which equals nothing.
        if wire::encode(&message, &mut again).is_ok() {
            let decoded = wire::decode::<ToLoadgen>(&again[4..]).expect("decodes again");
            let mut third = Vec::new();
            wire::encode(&decoded, &mut third).expect("encodes again");
            assert_eq!(again, third);
        }
    }
}
