//! The field's metrics, and the experiments that produce them.

pub mod agreement;
pub mod captions;
pub mod metrics;
pub mod photos;
pub mod pictures;
pub mod retrieval;
