//! Turning and mirroring a picture as its container asks for.

/// A quarter-turn orientation: where the display's axes lie in the coded picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orientation {
    /// Display x runs along coded y.
    swaps_axes: bool,
    /// Display x runs against its coded axis.
    flips_x: bool,
    flips_y: bool,
}

impl Orientation {
    /// From FFmpeg's display matrix: nine 32-bit integers, of which the first two columns of the
    /// first two rows turn the picture (ISO/IEC 14496-12, 6.2.2). Other angles than quarter turns
    /// become the nearest one. `None` where the matrix is too short or empty.
    pub fn from_matrix(bytes: &[u8]) -> Option<Orientation> {
        let entry = |index: usize| {
            let bytes = bytes.get(index * 4..index * 4 + 4)?;
            Some(i64::from(i32::from_ne_bytes(bytes.try_into().ok()?)))
        };
        // x' = a x + c y, y' = b x + d y
        let (a, b, c, d) = (entry(0)?, entry(1)?, entry(3)?, entry(4)?);
        if a.abs() + d.abs() >= b.abs() + c.abs() {
            let known = a != 0 && d != 0;
            known.then_some(Orientation { swaps_axes: false, flips_x: a < 0, flips_y: d < 0 })
        } else {
            Some(Orientation { swaps_axes: true, flips_x: c < 0, flips_y: b < 0 })
        }
    }

    /// From the value of Exif's `Orientation` tag, 1 to 8.
    pub fn from_exif(tag: u32) -> Option<Orientation> {
        let (swaps_axes, flips_x, flips_y) = match tag {
            1 => (false, false, false),
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => return None,
        };
        Some(Orientation { swaps_axes, flips_x, flips_y })
    }

    /// The clockwise part of the turn, without a mirroring.
    pub fn rotation_degrees(self) -> u16 {
        match (self.swaps_axes, self.flips_x, self.flips_y) {
            (false, true, true) | (false, false, true) => 180,
            (true, true, _) => 90,
            (true, false, true) => 270,
            _ => 0,
        }
    }

    pub fn swaps_axes(self) -> bool {
        self.swaps_axes
    }

    /// Copies the display picture into a canvas of `width` x `height` packed RGB pixels, at
    /// (`left`, `top`); what lies outside is cut. `coded` has `coded_width` x `coded_height`.
    pub fn place(
        self,
        coded: &[u8],
        (coded_width, coded_height): (usize, usize),
        canvas: &mut [u8],
        (width, height): (usize, usize),
        (left, top): (i64, i64),
    ) {
        let (shown_width, shown_height) =
            if self.swaps_axes { (coded_height, coded_width) } else { (coded_width, coded_height) };
        for y in 0..height {
            let shown_y = y as i64 - top;
            let Ok(shown_y) = usize::try_from(shown_y) else { continue };
            if shown_y >= shown_height {
                break;
            }
            for x in 0..width {
                let Ok(shown_x) = usize::try_from(x as i64 - left) else { continue };
                if shown_x >= shown_width {
                    break;
                }
                let along_x = if self.flips_x { shown_width - 1 - shown_x } else { shown_x };
                let along_y = if self.flips_y { shown_height - 1 - shown_y } else { shown_y };
                let (from_x, from_y) =
                    if self.swaps_axes { (along_y, along_x) } else { (along_x, along_y) };
                let from = (from_y * coded_width + from_x) * 3;
                let to = (y * width + x) * 3;
                canvas[to..to + 3].copy_from_slice(&coded[from..from + 3]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: i32 = 1 << 16;

    fn matrix(a: i32, b: i32, c: i32, d: i32) -> Orientation {
        let bytes: Vec<u8> = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
            .iter()
            .flat_map(|entry| entry.to_ne_bytes())
            .collect();
        Orientation::from_matrix(&bytes).unwrap()
    }

    /// One pixel a letter.
    fn turned(orientation: Orientation, coded: &str, width: usize) -> String {
        let height = coded.len() / width;
        let pixels: Vec<u8> = coded.bytes().flat_map(|letter| [letter; 3]).collect();
        let size = if orientation.swaps_axes() { (height, width) } else { (width, height) };
        let mut canvas = vec![b'.'; pixels.len()];
        orientation.place(&pixels, (width, height), &mut canvas, size, (0, 0));
        canvas.chunks(3).map(|pixel| char::from(pixel[0])).collect()
    }

    #[test]
    fn a_phone_held_upright_is_turned_clockwise() {
        // abc      da
        // def  ->  eb
        //          fc
        let upright = matrix(0, ONE, -ONE, 0);
        assert_eq!(upright.rotation_degrees(), 90);
        assert_eq!(turned(upright, "abcdef", 3), "daebfc");
        assert_eq!(Orientation::from_exif(6), Some(upright));
    }

    #[test]
    fn the_other_turns_and_mirrors_go_their_way() {
        assert_eq!(turned(matrix(ONE, 0, 0, ONE), "abcdef", 3), "abcdef");
        assert_eq!(turned(matrix(-ONE, 0, 0, -ONE), "abcdef", 3), "fedcba");
        assert_eq!(turned(matrix(0, -ONE, ONE, 0), "abcdef", 3), "cfbead");
        assert_eq!(matrix(0, -ONE, ONE, 0).rotation_degrees(), 270);
        assert_eq!(turned(matrix(-ONE, 0, 0, ONE), "abcdef", 3), "cbafed");
    }

    #[test]
    fn a_short_or_empty_matrix_is_none() {
        assert_eq!(Orientation::from_matrix(&[0; 12]), None);
        assert_eq!(Orientation::from_matrix(&[0; 36]), None);
    }

    proptest! {
        #[test]
        fn placing_never_leaves_the_canvas(
            tag in 1u32..=8, w in 1usize..6, h in 1usize..6, cw in 1usize..6, ch in 1usize..6,
            left in -8i64..8, top in -8i64..8,
        ) {
            let orientation = Orientation::from_exif(tag).unwrap();
            let coded = vec![9; cw * ch * 3];
            let mut canvas = vec![0; w * h * 3];
            orientation.place(&coded, (cw, ch), &mut canvas, (w, h), (left, top));
        }
    }
}
