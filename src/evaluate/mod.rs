//! The field's metrics, and the experiments that produce them.

pub mod metrics;
pub mod photos;
pub mod retrieval;
