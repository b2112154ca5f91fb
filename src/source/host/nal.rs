//! H.264 and H.265 packets as NAL units.

/// How the units of a packet are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Each unit after its length, big-endian, in so many bytes (MP4, Matroska).
    Lengths(usize),
    /// Each unit after a start code, 00 00 01 (transport streams, raw streams).
    StartCodes,
}

impl Framing {
    /// The units of `packet`, without start codes, none empty. A unit that is cut off is the last.
    pub fn units(self, packet: &[u8]) -> impl Iterator<Item = &[u8]> {
        let mut rest = match self {
            Framing::Lengths(_) => packet,
            Framing::StartCodes => after_start_code(packet).unwrap_or_default(),
        };
        std::iter::from_fn(move || {
            loop {
                if rest.is_empty() {
                    return None;
                }
                let (unit, tail) = match self {
                    Framing::Lengths(bytes) => {
                        let (length, tail) = rest.split_at_checked(bytes)?;
                        let length =
                            length.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
                        tail.split_at(length.min(tail.len()))
                    }
                    Framing::StartCodes => match start_code(rest) {
                        Some(at) => (&rest[..at], &rest[at + 3..]),
                        None => (rest, &[][..]),
                    },
                };
                rest = tail;
                if !unit.is_empty() {
                    return Some(unit);
                }
            }
        })
    }
}

fn start_code(bytes: &[u8]) -> Option<usize> {
    bytes.windows(3).position(|window| window == [0, 0, 1])
}

fn after_start_code(bytes: &[u8]) -> Option<&[u8]> {
    start_code(bytes).map(|at| &bytes[at + 3..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn units(framing: Framing, packet: &[u8]) -> Vec<&[u8]> {
        framing.units(packet).collect()
    }

    #[test]
    fn units_are_told_apart_by_start_codes_and_by_lengths() {
        let packet = [0, 0, 0, 1, 9, 16, 0, 0, 1, 101, 7, 0, 0, 0, 1, 65];
        let starts = units(Framing::StartCodes, &packet);
        assert_eq!(starts.iter().map(|unit| unit[0]).collect::<Vec<_>>(), [9, 101, 65]);
        let packet = [0, 2, 9, 16, 0, 0, 0, 1, 101, 0, 9, 65];
        assert_eq!(units(Framing::Lengths(2), &packet), [&[9, 16][..], &[101], &[65]]);
    }

    proptest! {
        #[test]
        fn any_bytes_have_units_that_are_not_empty(
            bytes in prop::collection::vec(0u8..4, 0..60), length in 1usize..5,
        ) {
            for framing in [Framing::StartCodes, Framing::Lengths(length)] {
                prop_assert!(framing.units(&bytes).all(|unit| !unit.is_empty()));
            }
        }
    }
}
