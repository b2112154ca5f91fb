//! The field's metrics, and the experiments that produce them.

pub mod agreement;
pub mod alignment;
pub mod captions;
mod conse;
pub mod films;
pub mod metrics;
pub mod page;
pub mod photos;
pub mod pictures;
pub mod reading;
pub mod retrieval;
pub mod setup;
pub mod speech;
pub mod zero_shot;
