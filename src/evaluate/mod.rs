//! The field's metrics, and the experiments that produce them.

pub mod agreement;
pub mod metrics;
pub mod photos;
pub mod retrieval;
