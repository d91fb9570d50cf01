//! The report contract and its renderings. All are pure: text goes in and out as strings.

mod client;
pub mod html;
pub mod json;
pub mod model;
pub mod study;
pub mod text;

#[cfg(test)]
mod tests;
