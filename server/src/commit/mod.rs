//! From `tpc_begin` to a durable, published transaction.
//!
//! [`draft`] gathers what a client sends, [`locks`] decides who may vote, [`thread`] writes.

pub mod check;
pub mod draft;
pub mod keeper;
pub mod locks;
pub mod thread;
