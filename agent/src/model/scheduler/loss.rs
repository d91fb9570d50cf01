//! Which packets are lost: `loss_event` and its models, net/sched/sch_netem.c.

use crate::model::netem::{LossModel, NetemOptions};
use crate::model::prng::{Correlated, Prng};

/// States of the four-state Markov chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SentInGap,
    SentInBurst,
    LostInBurst,
    LostInGap,
}

/// A loss model at work.
#[derive(Clone, Debug)]
pub(super) enum Loss {
    /// Each by itself, or resembling the one before.
    Random { probability: u32, numbers: Correlated },
    /// Four states; transitions p13, p31, p32, p14, p23.
    FourState { state: State4, p: [u32; 5] },
    /// Gilbert-Elliot; p, r, h, 1 - k.
    GilbertElliot { bad: bool, p: [u32; 4] },
}

/// Opaque to its users.
#[derive(Clone, Copy, Debug)]
pub(super) struct State4(State);

impl Loss {
    pub(super) fn new(options: &NetemOptions, first: u32) -> Self {
        match options.loss_model {
            None => Self::Random {
                probability: options.loss.probability.0,
                numbers: Correlated::new(options.loss.correlation.0, first),
            },
            Some(LossModel::FourState(p)) => {
                Self::FourState { state: State4(State::SentInGap), p: p.map(|p| p.0) }
            }
            Some(LossModel::GilbertElliot(p)) => {
                Self::GilbertElliot { bad: false, p: p.map(|p| p.0) }
            }
        }
    }

    /// Whether the next packet is lost.
    pub(super) fn next(&mut self, prng: &mut Prng) -> bool {
        match self {
            Self::Random { probability: 0, .. } => false,
            Self::Random { probability, numbers } => *probability >= numbers.next_u32(prng),
            Self::FourState { state, p } => {
                let next = four_state(state.0, *p, prng.next_u32());
                state.0 = next;
                matches!(next, State::LostInBurst | State::LostInGap)
            }
            Self::GilbertElliot { bad, p: [p, r, h, k1] } => {
                let moves = prng.next_u32() < if *bad { *r } else { *p };
                // Whether it is lost depends on the state before the move.
                let lost = if *bad { prng.next_u32() > *h } else { prng.next_u32() < *k1 };
                *bad ^= moves;
                lost
            }
        }
    }
}

/// The chain's next state. A packet is lost when the chain enters, or stays in, a state of loss.
fn four_state(state: State, [p13, p31, p32, p14, p23]: [u32; 5], number: u32) -> State {
    match state {
        State::SentInGap if number < p14 => State::LostInGap,
        State::SentInGap if number < p13.saturating_add(p14) => State::LostInBurst,
        State::SentInGap => State::SentInGap,
        State::SentInBurst if number < p23 => State::LostInBurst,
        State::SentInBurst => State::SentInBurst,
        State::LostInBurst if number < p32 => State::SentInBurst,
        State::LostInBurst if number < p31.saturating_add(p32) => State::SentInGap,
        State::LostInBurst => State::LostInBurst,
        State::LostInGap => State::SentInGap,
    }
}
