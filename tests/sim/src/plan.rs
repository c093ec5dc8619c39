//! Worlds drawn from a number.
