//! How long to wait before a stream is tried again.

use std::time::Duration;

/// Grows from a short pause to the longest, for ever, and begins anew after health.
#[derive(Debug)]
pub struct Pauses {
    longest: Duration,
    next: Duration,
}

const SHORTEST: Duration = Duration::from_millis(500);
const HEALTHY: Duration = Duration::from_secs(10);

impl Pauses {
    pub fn new(longest: Duration) -> Self {
        Pauses { longest, next: SHORTEST.min(longest) }
    }

    /// The next pause: between half and all of what it has grown to, so that many streams which were
    /// lost together are not tried together. `share` is random, 0 to 1.
    pub fn take(&mut self, share: f64) -> Duration {
        let pause = self.next.mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    /// A connection has brought frames for so long, and is over.
    pub fn connected(&mut self, lasted: Duration) {
        if is_healthy(lasted) {
            self.next = SHORTEST.min(self.longest);
        }
    }
}

/// Whether a connection is healthy that has brought frames for so long.
pub fn is_healthy(lasted: Duration) -> bool {
    lasted > HEALTHY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_begin_anew_after_health() {
        let mut pauses = Pauses::new(Duration::from_secs(30));
        let taken: Vec<f64> = (0..9).map(|_| pauses.take(1.0).as_secs_f64()).collect();
        assert_eq!(taken, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        // One that is lost again and again is not healthy.
        pauses.connected(Duration::from_secs(10));
        assert_eq!(pauses.take(0.0), Duration::from_secs(15));
        pauses.connected(Duration::from_millis(10_001));
        assert_eq!(pauses.take(0.0), Duration::from_millis(250));
    }
}
