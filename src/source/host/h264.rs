//! What each picture of an H.264 stream may be predicted from, read from slice headers without
//! decoding anything: ITU-T H.264, 7.3.3 (syntax), 8.2.4 (reference lists), 8.2.5 (marking).

use h264_reader::Context;
use h264_reader::avcc::AvcDecoderConfigurationRecord;
use h264_reader::nal::pps::PicParameterSet;
use h264_reader::nal::slice::{
    DecRefPicMarking, FieldPic, MemoryManagementControlOperation as Operation,
    ModificationOfPicNums as Modification, NumRefIdxActive, RefPicListModifications, SliceFamily,
    SliceHeader,
};
use h264_reader::nal::sps::SeqParameterSet;
use h264_reader::nal::{Nal, RefNal, UnitType};

use super::nal::Framing;

/// No legal stream has more reference frames, or more slices in a picture of any size that occurs.
const MAX_REFERENCES: usize = 16;
const MAX_SLICES: usize = 512;

/// What is known of one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Whether others may be predicted from it.
    pub is_reference: bool,
    /// Whether all its slices are B slices.
    pub is_bidirectional: bool,
    /// Numbers of the pictures that it may be predicted from; `None` where that is not understood.
    pub needs: Option<Vec<usize>>,
}

/// Follows the decoded picture buffer from an IDR picture on.
pub struct Follower {
    context: Context,
    framing: Framing,
    /// Frames marked as used for reference; `None` where this is not known.
    buffer: Option<Buffer>,
}

#[derive(Debug, Clone, Default)]
struct Buffer {
    /// By `frame_num`.
    short: Vec<Reference>,
    /// By `LongTermFrameIdx`.
    long: Vec<Reference>,
    previous_frame_num: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reference {
    number: i64,
    picture: usize,
}

impl Follower {
    /// `extradata`: an `avcC` record, or parameter sets after start codes.
    pub fn new(extradata: &[u8]) -> Follower {
        let mut follower =
            Follower { context: Context::new(), framing: Framing::StartCodes, buffer: None };
        if extradata.first() == Some(&1) {
            follower.framing =
                Framing::Lengths(usize::from(extradata.get(4).copied().unwrap_or(3) & 3) + 1);
            let record = AvcDecoderConfigurationRecord::try_from(extradata).ok();
            // What cannot be read is not there, and its slices will not be understood.
            if let Some(context) = record.and_then(|record| record.create_context().ok()) {
                follower.context = context;
            }
        } else {
            for unit in Framing::StartCodes.units(extradata) {
                follower.learn(unit);
            }
        }
        follower
    }

    /// Whether the packet's picture begins a stream of its own: nothing from it on refers to
    /// anything before it.
    pub fn is_idr(&self, packet: &[u8]) -> bool {
        let slice = self.framing.units(packet).find(|unit| (1..=5).contains(&(unit[0] & 31)));
        slice.is_some_and(|slice| slice[0] & 31 == 5)
    }

    /// Forgets all pictures: nothing is understood until an IDR picture comes.
    pub fn forget(&mut self) {
        self.buffer = None;
    }

    /// Frames that pictures to come may refer to; `None` where that is not known.
    pub fn buffered(&self) -> Option<impl Iterator<Item = usize>> {
        let buffer = self.buffer.as_ref()?;
        Some(buffer.short.iter().chain(&buffer.long).map(|reference| reference.picture))
    }

    /// Takes note of a parameter set.
    fn learn(&mut self, unit: &[u8]) {
        let unit = RefNal::new(unit, &[], true);
        let Ok(header) = unit.header() else { return };
        match header.nal_unit_type() {
            UnitType::SeqParameterSet => {
                if let Ok(set) = SeqParameterSet::from_bits(unit.rbsp_bits()) {
                    self.context.put_seq_param_set(set);
                }
            }
            UnitType::PicParameterSet => {
                if let Ok(set) = PicParameterSet::from_bits(&self.context, unit.rbsp_bits()) {
                    self.context.put_pic_param_set(set);
                }
            }
            _ => {}
        }
    }

    /// The next picture in order of decoding, which is to be known as `number`; `None` where the
    /// packet holds no slice.
    pub fn next(&mut self, packet: &[u8], number: usize) -> Option<Picture> {
        let mut picture: Option<Picture> = None;
        let mut kind = None;
        let mut marking = None;
        let mut slices = 0;
        for unit in self.framing.units(packet) {
            self.learn(unit);
            let unit = RefNal::new(unit, &[], true);
            let Ok(header) = unit.header() else { continue };
            let is_idr = match header.nal_unit_type() {
                UnitType::SliceLayerWithoutPartitioningIdr => true,
                UnitType::SliceLayerWithoutPartitioningNonIdr => false,
                UnitType::SliceDataPartitionALayer => {
                    self.buffer = None;
                    false
                }
                _ => continue,
            };
            if is_idr && picture.is_none() {
                self.buffer = Some(Buffer::default());
            }
            let is_reference = header.nal_ref_idc() != 0;
            let first = *kind.get_or_insert((is_idr, is_reference));
            let picture = picture.get_or_insert(Picture {
                is_reference,
                is_bidirectional: true,
                needs: Some(Vec::new()),
            });
            slices += 1;
            let parsed = SliceHeader::from_bits(&self.context, &mut unit.rbsp_bits(), header, None);
            let read = match (parsed, &self.buffer) {
                (Ok((slice, sequence, parameters)), Some(buffer))
                    if slices <= MAX_SLICES && (is_idr, is_reference) == first =>
                {
                    read_slice(&slice, sequence, parameters, buffer).map(|needs| {
                        picture.is_bidirectional &= slice.slice_type.family == SliceFamily::B;
                        if slices == 1 {
                            marking = Some(Marking::of(slice, sequence));
                        }
                        needs
                    })
                }
                _ => None,
            };
            match (read, &mut picture.needs) {
                (Some(more), Some(needs)) => {
                    needs.extend(more);
                    needs.sort_unstable();
                    needs.dedup();
                }
                _ => picture.needs = None,
            }
        }
        if let Some(picture) = &picture {
            let marked = match (marking, self.buffer.take()) {
                (Some(marking), Some(buffer)) if picture.needs.is_some() => {
                    marking.applied(buffer, number, picture.is_reference)
                }
                _ => None,
            };
            self.buffer = marked;
        }
        picture
    }
}

/// The pictures that a slice may be predicted from; `None` where that is not understood.
fn read_slice(
    slice: &SliceHeader,
    sequence: &SeqParameterSet,
    parameters: &PicParameterSet,
    buffer: &Buffer,
) -> Option<Vec<usize>> {
    if slice.field_pic != FieldPic::Frame || slice.redundant_pic_cnt.is_some_and(|count| count > 0)
    {
        return None;
    }
    let modifications = match &slice.ref_pic_list_modification {
        Some(RefPicListModifications::P { ref_pic_list_modification_l0 }) => {
            ref_pic_list_modification_l0
        }
        Some(RefPicListModifications::I) => return Some(Vec::new()),
        // Which of them depends on the order of display; all of them is right too.
        Some(RefPicListModifications::B { .. }) => {
            let all = buffer.short.iter().chain(&buffer.long);
            return Some(all.map(|reference| reference.picture).collect());
        }
        None => return None,
    };
    let active = match slice.num_ref_idx_active {
        Some(NumRefIdxActive::P { num_ref_idx_l0_active_minus1: last }) => last,
        Some(NumRefIdxActive::B { .. }) => return None,
        None => parameters.num_ref_idx_l0_default_active_minus1,
    } as usize
        + 1;
    buffer.list(i64::from(slice.frame_num), max_frame_num(sequence), modifications, active)
}

fn max_frame_num(sequence: &SeqParameterSet) -> i64 {
    1 << sequence.log2_max_frame_num().min(16)
}

/// `FrameNumWrap`, which for frames is also `PicNum` (8.2.4.1).
fn wrapped(number: i64, current: i64, max: i64) -> i64 {
    if number > current { number - max } else { number }
}

impl Buffer {
    /// Reference picture list 0 of a P slice (8.2.4.2.1, 8.2.4.3).
    fn list(
        &self,
        current: i64,
        max: i64,
        modifications: &[Modification],
        active: usize,
    ) -> Option<Vec<usize>> {
        let mut short = self.short.clone();
        short.sort_by_key(|reference| -wrapped(reference.number, current, max));
        let mut long = self.long.clone();
        long.sort_by_key(|reference| reference.number);
        let mut list: Vec<usize> =
            short.iter().chain(&long).map(|reference| reference.picture).collect();
        list.truncate(active);
        let mut predicted = current;
        for (place, modification) in modifications.iter().enumerate() {
            if place >= active {
                return None;
            }
            let found = match *modification {
                Modification::Subtract(difference) | Modification::Add(difference) => {
                    let difference = i64::from(difference) + 1;
                    if difference > max {
                        return None;
                    }
                    let is_sum = matches!(modification, Modification::Add(_));
                    let sum = if is_sum { predicted + difference } else { predicted - difference };
                    predicted = sum.rem_euclid(max);
                    let wanted = wrapped(predicted, current, max);
                    short.iter().find(|one| wrapped(one.number, current, max) == wanted)?
                }
                Modification::LongTermRef(number) => {
                    long.iter().find(|one| one.number == i64::from(number))?
                }
                Modification::SubtractViewIdx(_) | Modification::AddViewIdx(_) => return None,
            };
            let place = place.min(list.len());
            let mut behind = list.split_off(place);
            behind.retain(|picture| *picture != found.picture);
            list.push(found.picture);
            list.append(&mut behind);
            list.truncate(active);
        }
        Some(list)
    }
}

/// How a picture changes the buffer.
struct Marking {
    marking: Option<DecRefPicMarking>,
    frame_num: i64,
    max_frame_num: i64,
    /// The most frames that the buffer holds.
    room: usize,
}

impl Marking {
    fn of(slice: SliceHeader, sequence: &SeqParameterSet) -> Marking {
        Marking {
            marking: slice.dec_ref_pic_marking,
            frame_num: i64::from(slice.frame_num),
            max_frame_num: max_frame_num(sequence),
            room: (sequence.max_num_ref_frames as usize).clamp(1, MAX_REFERENCES),
        }
    }

    /// The buffer after the picture; `None` where frames are missing before it, or the marking
    /// makes no sense.
    fn applied(self, mut buffer: Buffer, picture: usize, is_reference: bool) -> Option<Buffer> {
        let Marking { marking, frame_num, max_frame_num: max, room } = self;
        let is_idr = matches!(marking, Some(DecRefPicMarking::Idr { .. }));
        let expected = (buffer.previous_frame_num + 1).rem_euclid(max);
        if !is_idr && frame_num != expected {
            return None;
        }
        if !is_reference {
            return Some(buffer);
        }
        buffer.previous_frame_num = frame_num;
        let mut current = Reference { number: frame_num, picture };
        let mut is_long = false;
        match marking? {
            DecRefPicMarking::Idr { long_term_reference_flag, .. } => {
                is_long = long_term_reference_flag;
                if is_long {
                    current.number = 0;
                }
            }
            DecRefPicMarking::SlidingWindow => {
                if buffer.short.len() + buffer.long.len() >= room {
                    let oldest = (0..buffer.short.len())
                        .min_by_key(|at| wrapped(buffer.short[*at].number, frame_num, max))?;
                    buffer.short.remove(oldest);
                }
            }
            DecRefPicMarking::Adaptive(operations) => {
                for operation in operations {
                    match operation {
                        Operation::ShortTermUnusedForRef {
                            difference_of_pic_nums_minus1: less,
                        } => {
                            buffer.take_short(frame_num, max, less)?;
                        }
                        Operation::LongTermUnusedForRef { long_term_pic_num: number } => {
                            buffer.long.retain(|one| one.number != i64::from(number));
                        }
                        Operation::ShortTermUsedForLongTerm {
                            difference_of_pic_nums_minus1: less,
                            long_term_frame_idx: number,
                        } => {
                            let moved = buffer.take_short(frame_num, max, less)?;
                            let number = i64::from(number);
                            buffer.long.retain(|one| one.number != number);
                            buffer.long.push(Reference { number, ..moved });
                        }
                        Operation::MaxUsedLongTermFrameRef { max_long_term_frame_idx_plus1 } => {
                            let most = i64::from(max_long_term_frame_idx_plus1);
                            buffer.long.retain(|one| one.number < most);
                        }
                        Operation::AllRefPicturesUnused => {
                            buffer = Buffer::default();
                            current.number = 0;
                        }
                        Operation::CurrentUsedForLongTerm { long_term_frame_idx: number } => {
                            is_long = true;
                            current.number = i64::from(number);
                            buffer.long.retain(|one| one.number != current.number);
                        }
                    }
                }
            }
        }
        if is_long { &mut buffer.long } else { &mut buffer.short }.push(current);
        (buffer.short.len() + buffer.long.len() <= room).then_some(buffer)
    }
}

impl Buffer {
    /// Takes out the short-term frame whose `PicNum` is `less` + 1 below the current one's.
    fn take_short(&mut self, current: i64, max: i64, less: u32) -> Option<Reference> {
        let wanted = current - i64::from(less) - 1;
        let at = self.short.iter().position(|one| wrapped(one.number, current, max) == wanted)?;
        Some(self.short.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buffer(short: &[(i64, usize)], long: &[(i64, usize)]) -> Buffer {
        let references = |list: &[(i64, usize)]| {
            list.iter().map(|&(number, picture)| Reference { number, picture }).collect()
        };
        Buffer { short: references(short), long: references(long), previous_frame_num: 0 }
    }

    #[test]
    fn a_list_begins_with_the_newest_short_and_ends_with_the_long_ones() {
        // Frame numbers have wrapped at 16.
        let buffer = buffer(&[(14, 0), (15, 1), (0, 2)], &[(3, 9), (1, 8)]);
        assert_eq!(buffer.list(1, 16, &[], 5), Some(vec![2, 1, 0, 8, 9]));
        assert_eq!(buffer.list(1, 16, &[], 1), Some(vec![2]));
    }

    #[test]
    fn a_modified_list_begins_with_what_was_moved() {
        let buffer = buffer(&[(4, 4), (5, 5), (6, 6)], &[(0, 9)]);
        let moved = [Modification::Subtract(1), Modification::LongTermRef(0)];
        assert_eq!(buffer.list(7, 16, &moved, 4), Some(vec![5, 9, 6, 4]));
        // The first goes back two, the second forward one from there.
        let moved = [Modification::Subtract(1), Modification::Add(0)];
        assert_eq!(buffer.list(7, 16, &moved, 2), Some(vec![5, 6]));
        assert_eq!(buffer.list(7, 16, &[Modification::Subtract(8)], 2), None);
    }

    #[test]
    fn the_oldest_frame_slides_out_of_a_full_buffer() {
        let full = Buffer { previous_frame_num: 15, ..buffer(&[(14, 0), (15, 1)], &[]) };
        let marking = |frame_num| Marking {
            marking: Some(DecRefPicMarking::SlidingWindow),
            frame_num,
            max_frame_num: 16,
            room: 2,
        };
        let after = marking(0).applied(full.clone(), 2, true).unwrap();
        assert_eq!(after.short.iter().map(|one| one.picture).collect::<Vec<_>>(), [1, 2]);
        // A number was left out, so frames are missing.
        assert!(marking(1).applied(full, 2, true).is_none());
    }

    #[test]
    fn marked_frames_leave_or_stay_for_long() {
        let before = Buffer { previous_frame_num: 6, ..buffer(&[(4, 4), (5, 5), (6, 6)], &[]) };
        let marking = Marking {
            marking: Some(DecRefPicMarking::Adaptive(vec![
                Operation::ShortTermUnusedForRef { difference_of_pic_nums_minus1: 0 },
                Operation::ShortTermUsedForLongTerm {
                    difference_of_pic_nums_minus1: 2,
                    long_term_frame_idx: 1,
                },
            ])),
            frame_num: 7,
            max_frame_num: 16,
            room: 4,
        };
        let after = marking.applied(before, 7, true).unwrap();
        let pictures = |list: &[Reference]| list.iter().map(|one| one.picture).collect::<Vec<_>>();
        assert_eq!((pictures(&after.short), pictures(&after.long)), (vec![5, 7], vec![4]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(
            extradata in prop::collection::vec(any::<u8>(), 0..60),
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..8),
        ) {
            // Parameter sets that are right, so that slices are read far.
            let sets = b"\0\0\x01\x67\x42\xc0\x0a\xda\x0f\x0a\x69\xa8\x10\x10\x11\0\0\x01\x68\xce\x06\xe2";
            for extradata in [&extradata[..], sets] {
                let mut follower = Follower::new(extradata);
                for (number, packet) in packets.iter().enumerate() {
                    for first in [b'\x65', b'\x41', b'\x01'] {
                        let unit = [b"\0\0\x01", &[first][..], packet].concat();
                        follower.next(&unit, number);
                    }
                    follower.next(packet, number);
                }
            }
        }
    }
}
