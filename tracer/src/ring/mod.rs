//! From the ring buffer to events: [`decode`] is pure and bounds-checked, [`drain`] keeps the order and counts losses.
pub mod decode;
