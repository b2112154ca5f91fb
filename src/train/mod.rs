//! Training the transformer: data, losses, the loop, checkpoints and export. The only place that
//! names burn.

mod batch;
mod checkpoint;
pub mod config;
pub mod corpus;
mod draw;
mod examples;
mod films;
mod losses;
mod material;
mod network;
mod ops;
mod optimizer;
mod outcome;
mod report;
mod reward;
mod run;
#[cfg(test)]
mod tests;
mod trainer;
mod vector;

pub use config::Config;
pub use films::Learnt;
pub use material::{Material, Sources};
pub use outcome::CODEBOOK;
pub use run::{Event, Finished, train};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The random numbers for one purpose and one step (or epoch): nothing else decides them, so a training
/// that goes on later draws the same.
fn random(seed: &[u8; 32], purpose: &str, number: u64) -> ChaCha8Rng {
    let mut hash = blake3::Hasher::new_keyed(seed);
    hash.update(&number.to_le_bytes());
    hash.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hash.finalize().as_bytes())
}
