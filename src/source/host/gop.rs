//! Which packets need be decoded, told before decoding from one keyframe to the next.
//!
//! Of a group of pictures, only those are decoded that a target shows, and those that these may be
//! predicted from, however indirectly. What comes out is bit for bit what a full decode gives. All
//! of it depends on the group and the grid of targets alone, so that a request for a part decodes
//! what a request for the whole decodes.

use std::collections::{BTreeSet, VecDeque};

use ffmpeg_next as ffmpeg;

use ffmpeg::Packet;
use ffmpeg::codec::Id;
use ffmpeg::codec::discard::Discard;

use super::demux::{Next, Source};
use super::ffi;
use super::h264::Follower;
use super::nal::Framing;
use crate::source::protocol::{Targets, Track};
use crate::time::{Micros, Timestamp};

/// Longest group that is looked through; longer ones are decoded but for what nothing refers to.
const MAX_PICTURES: usize = 1_200;
const MAX_BYTES: usize = 24 << 20;
/// Pictures that a decoder holds back are fewer.
const MAX_FOLLOWED: usize = 64;

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Decode, but for what the decoder skips by itself.
    Decode(Discard),
    /// Let the decoder know of it without decoding it: what it does to the buffer of references
    /// counts, its picture does not.
    Follow,
    /// Nothing needs it.
    Drop,
}

/// What reading ahead gave.
pub enum Upcoming {
    Packet(Packet, Fate),
    End,
    /// Reading broke off.
    Broken(ffmpeg::Error),
}

/// How a codec's packets are understood.
enum Syntax {
    H264(Follower),
    H265(Framing),
    /// A keyframe leaves nothing of what was before it.
    Vp,
    /// Nothing is known but what the decoder can tell.
    Unknown,
}

/// What is known of a picture before it is decoded.
#[derive(Debug, Clone, Default)]
struct Coded {
    /// When it comes on display.
    shown: Option<Timestamp>,
    /// Whether others may be predicted from it.
    is_reference: bool,
    is_bidirectional: bool,
    /// Shown before the keyframe that it follows, and maybe in need of what was before that.
    is_leading: bool,
    /// Temporal sub-layer (H.265).
    layer: u8,
    /// Places in the group of what it may be predicted from; `None`: all references before it.
    needs: Option<Vec<usize>>,
}

/// What comes after a group.
#[derive(Debug, Clone, Copy)]
enum Following {
    /// A keyframe that begins anew: nothing needs what is before it.
    Anew(Option<Timestamp>),
    /// A keyframe that pictures may follow which need what is before it.
    Joined,
    End,
}

/// Reads packets of one track ahead, a group at a time.
pub struct Lookahead {
    syntax: Syntax,
    /// `None`: every picture is wanted.
    targets: Option<Targets>,
    packets: Vec<Packet>,
    group: Vec<Coded>,
    bytes: usize,
    /// Whether all of the group is understood so far, and it is not too long.
    is_understood: bool,
    ready: VecDeque<(Packet, Fate)>,
    last: Option<Upcoming>,
    keys: VecDeque<Timestamp>,
    /// Pts of what was followed and not decoded.
    followed: BTreeSet<i64>,
    /// Groups that were decoded but for what the decoder skips by itself.
    pub unplanned: u64,
}

/// A keyframe stands for the target that lies less than this before it: half a step, so that it
/// lies in the target's own share of time, and half a second at most.
pub fn tolerance(targets: &Targets) -> Micros {
    let half = targets.step_num / (2 * u64::from(targets.step_den.max(1)));
    Micros(i64::try_from(half).unwrap_or(i64::MAX).min(500_000))
}

impl Lookahead {
    /// `targets`: the grid of what is wanted; `None` where every picture is.
    pub fn new(source: &Source, track: &Track, targets: Option<Targets>) -> Lookahead {
        let (codec, extradata) = ffi::codec(source.input(), track.index as usize);
        let syntax = match codec {
            _ if targets.is_none() => Syntax::Unknown,
            Id::H264 => Syntax::H264(Follower::new(&extradata)),
            Id::HEVC => Syntax::H265(match extradata[..] {
                // A record and no start code, as FFmpeg tells them apart.
                [a, b, c, ..] if a != 0 || b != 0 || c > 1 => {
                    let length = extradata.get(21).copied().unwrap_or(3) & 3;
                    Framing::Lengths(usize::from(length) + 1)
                }
                _ => Framing::StartCodes,
            }),
            Id::VP8 | Id::VP9 => Syntax::Vp,
            _ => Syntax::Unknown,
        };
        Lookahead {
            syntax,
            targets,
            packets: Vec::new(),
            group: Vec::new(),
            bytes: 0,
            is_understood: true,
            ready: VecDeque::new(),
            last: None,
            keys: VecDeque::new(),
            followed: BTreeSet::new(),
            unplanned: 0,
        }
    }

    /// Forgets what was read ahead, and begins with `first`.
    pub fn restart(&mut self, first: Option<Packet>, source: &Source, track: &Track) {
        self.packets.clear();
        self.group.clear();
        self.bytes = 0;
        self.is_understood = true;
        self.ready.clear();
        self.last = None;
        self.keys.clear();
        self.followed.clear();
        self.unplanned = 0;
        if let Some(first) = first {
            self.take(first, source, track);
        }
    }

    /// When a keyframe comes on display that nothing before is needed for; each is told once, before
    /// the pictures that it follows.
    pub fn next_key(&mut self) -> Option<Timestamp> {
        self.keys.pop_front()
    }

    /// Whether the picture with this pts is one that was not decoded; told once.
    pub fn was_followed(&mut self, pts: Option<i64>) -> bool {
        pts.is_some_and(|pts| self.followed.remove(&pts))
    }

    /// The next packet of the track and what to do with it, or the end.
    pub fn next(&mut self, source: &mut Source, track: &Track) -> Upcoming {
        loop {
            if let Some((packet, fate)) = self.ready.pop_front() {
                if let (Fate::Follow, Some(pts)) = (fate, packet.pts()) {
                    self.followed.insert(pts);
                    if self.followed.len() > MAX_FOLLOWED {
                        self.followed.pop_first();
                    }
                }
                return Upcoming::Packet(packet, fate);
            }
            if let Some(last) = self.last.take() {
                return last;
            }
            match source.next() {
                Next::Packet(packet) if packet.stream() == track.index as usize => {
                    self.take(packet, source, track);
                }
                Next::Packet(_) => {}
                Next::End => {
                    self.settle(Following::End);
                    self.last = Some(Upcoming::End);
                }
                Next::Broken(cause) => {
                    self.settle(Following::End);
                    self.last = Some(Upcoming::Broken(cause));
                }
            }
        }
    }

    fn take(&mut self, packet: Packet, source: &Source, track: &Track) {
        if matches!(self.syntax, Syntax::Unknown) {
            self.ready.push_back((packet, Fate::Decode(self.skipping())));
            return;
        }
        let shown = packet.pts().map(|pts| source.time_of(track, pts));
        if packet.is_key() {
            if self.begins_anew(&packet) {
                self.settle(Following::Anew(shown));
                self.keys.extend(shown);
            } else {
                self.settle(Following::Joined);
            }
        }
        let was_understood = self.is_understood;
        let coded = self.look_at(&packet, shown);
        self.bytes += packet.size();
        self.packets.push(packet);
        self.group.push(coded);
        self.is_understood &= self.group.len() <= MAX_PICTURES && self.bytes <= MAX_BYTES;
        if !self.is_understood {
            self.unplanned += u64::from(was_understood);
            self.pass();
        }
    }

    /// What the decoder is to skip by itself.
    fn skipping(&self) -> Discard {
        if self.targets.is_some() { Discard::NonReference } else { Discard::Default }
    }

    /// Whether nothing from this keyframe on needs what is before it, but for leading pictures.
    fn begins_anew(&self, packet: &Packet) -> bool {
        let Some(data) = packet.data() else { return false };
        match &self.syntax {
            Syntax::H264(follower) => follower.is_idr(data),
            Syntax::H265(framing) => {
                framing.units(data).any(|unit| (16..=23).contains(&h265_type(unit)))
            }
            Syntax::Vp => true,
            Syntax::Unknown => false,
        }
    }

    fn look_at(&mut self, packet: &Packet, shown: Option<Timestamp>) -> Coded {
        let data = packet.data().unwrap_or_default();
        let mut coded = Coded { shown, is_reference: true, ..Coded::default() };
        match &mut self.syntax {
            Syntax::H264(follower) => {
                if packet.is_key() {
                    // Whatever was before, so that it does not matter where decoding began.
                    follower.forget();
                }
                let picture = follower.next(data, self.group.len());
                self.is_understood &= picture.as_ref().is_some_and(|found| found.needs.is_some());
                if let Some(picture) = picture {
                    coded.is_reference = picture.is_reference;
                    coded.is_bidirectional = picture.is_bidirectional;
                    coded.needs = picture.needs;
                }
            }
            Syntax::H265(framing) => {
                if let Some(slice) = framing.units(data).find(|unit| h265_type(unit) < 32) {
                    let kind = h265_type(slice);
                    coded.is_leading = (6..=9).contains(&kind);
                    coded.is_reference = kind >= 16 || kind % 2 == 1;
                    coded.layer = slice.get(1).map_or(0, |byte| byte & 7);
                }
            }
            Syntax::Vp | Syntax::Unknown => {}
        }
        coded
    }

    /// The group is complete.
    fn settle(&mut self, following: Following) {
        let fates = match (&self.targets, self.is_understood) {
            (Some(targets), true) => {
                let kept = match (&self.syntax, following) {
                    (Syntax::H264(follower), Following::Joined) => {
                        follower.buffered().map(Iterator::collect)
                    }
                    _ => None,
                };
                plan(&self.group, targets, following, kept)
            }
            _ => None,
        };
        match fates {
            Some(fates) => {
                self.ready.extend(self.packets.drain(..).zip(fates));
                self.group.clear();
            }
            None => {
                self.unplanned += u64::from(!self.packets.is_empty());
                self.pass();
            }
        }
        self.bytes = 0;
        self.is_understood = true;
    }

    /// What there is of the group goes on without a plan.
    fn pass(&mut self) {
        let skipping = self.skipping();
        let has_layers = self.group.iter().any(|coded| coded.layer > 1);
        let fate = |coded: &Coded| match coded.shown {
            // What leads a keyframe may need what was left out before it.
            _ if coded.is_leading => Fate::Drop,
            // Frames are counted to know their times.
            None => Fate::Decode(Discard::Default),
            // Those of a higher layer may be predicted from it.
            Some(_) if has_layers && !coded.is_reference => Fate::Decode(Discard::Default),
            Some(_) => Fate::Decode(skipping),
        };
        let fates = self.group.drain(..).map(|coded| fate(&coded));
        self.ready.extend(self.packets.drain(..).zip(fates));
    }
}

fn h265_type(unit: &[u8]) -> u8 {
    unit.first().map_or(63, |byte| byte >> 1 & 63)
}

/// What to do with each picture of a group, which begins with its keyframe; `None` where times are
/// missing. `kept`: what is referred to after the group; `None`: all references.
fn plan(
    group: &[Coded],
    targets: &Targets,
    following: Following,
    kept: Option<Vec<usize>>,
) -> Option<Vec<Fate>> {
    let highest = group.iter().map(|coded| coded.layer).max()?;
    // A sub-layer's pictures may be referred to from the layers above.
    let is_kept =
        |coded: &Coded| !coded.is_leading && (coded.is_reference || coded.layer < highest);
    let mut shown: Vec<(Timestamp, usize)> = Vec::new();
    for (place, coded) in group.iter().enumerate().filter(|(_, coded)| is_kept(coded)) {
        shown.push((coded.shown?, place));
    }
    shown.sort_unstable();
    let group = Group { group, targets, following, kept, shown, is_kept: &is_kept };
    // FFmpeg's implicit weights of a B picture are wrong where one before it was passed over, so
    // either all of them are passed over or none.
    let is_bidirectional = |place: usize| group.group[place].is_bidirectional;
    let without = group.needed(|place| !is_bidirectional(place));
    let has_none =
        |needed: &Vec<bool>| (0..needed.len()).all(|at| !needed[at] || !is_bidirectional(at));
    if let Some(needed) = without.filter(has_none) {
        return group.fates(&needed, Fate::Follow);
    }
    let needed = group.needed(|_| true)?;
    group.fates(&needed, Fate::Decode(Discard::NonReference))
}

/// A group that is being planned.
struct Group<'a, F> {
    group: &'a [Coded],
    targets: &'a Targets,
    following: Following,
    kept: Option<Vec<usize>>,
    /// What others may refer to, in order of display.
    shown: Vec<(Timestamp, usize)>,
    is_kept: &'a F,
}

impl<F: Fn(&Coded) -> bool> Group<'_, F> {
    /// Which pictures are needed where only those that `may_show` are shown; `None` where one of
    /// them would be shown too late after it came.
    fn needed(&self, may_show: impl Fn(usize) -> bool) -> Option<Vec<bool>> {
        let (key, end) = match self.following {
            Following::Anew(Some(key)) if self.shown.last().is_none_or(|(last, _)| *last < key) => {
                (Some(key), key)
            }
            // What is shown at or behind the keyframe (edit lists, damage) is not understood.
            Following::Anew(_) => return None,
            Following::Joined | Following::End => (None, Timestamp::MAX),
        };
        let mut is_needed = vec![false; self.group.len()];
        *is_needed.first_mut()? = true;
        let tolerance = tolerance(self.targets);
        let shown: Vec<(Timestamp, usize)> =
            self.shown.iter().copied().filter(|(_, place)| may_show(*place)).collect();
        let is_less = shown.len() < self.shown.len();
        let ends = shown.iter().skip(1).map(|(at, _)| *at).chain([end]);
        for (&(start, place), end) in shown.iter().zip(ends) {
            let mut index = self.targets.first_at_or_after(start);
            let mut target = self.targets.at(index);
            let near_key = |target| key.is_some_and(|key| key - target < tolerance);
            is_needed[place] |= target < end && !near_key(target);
            while is_less && end < Timestamp::MAX && target < end {
                if target - start > tolerance && !near_key(target) {
                    return None;
                }
                index += 1;
                target = self.targets.at(index);
            }
        }
        if matches!(self.following, Following::Joined) {
            match &self.kept {
                Some(kept) => kept.iter().for_each(|place| is_needed[*place] = true),
                None => self.shown.iter().for_each(|(_, place)| is_needed[*place] = true),
            }
        }
        for place in (1..self.group.len()).rev() {
            if is_needed[place] {
                match &self.group[place].needs {
                    Some(needs) => needs.iter().for_each(|need| is_needed[*need] = true),
                    None => (0..place)
                        .for_each(|need| is_needed[need] |= (self.is_kept)(&self.group[need])),
                }
            }
        }
        Some(is_needed)
    }

    /// `passed`: the fate of B pictures that others may refer to and that are not needed.
    fn fates(&self, is_needed: &[bool], passed: Fate) -> Option<Vec<Fate>> {
        let last = is_needed.iter().rposition(|needed| *needed)?;
        let is_open = matches!(self.following, Following::Joined);
        let fate = |(place, coded): (usize, &Coded)| {
            if is_needed[place] {
                // What others of a higher layer refer to may not be skipped.
                Fate::Decode(if coded.is_reference {
                    Discard::NonReference
                } else {
                    Discard::Default
                })
            } else if !(self.is_kept)(coded) || (place > last && !is_open) {
                Fate::Drop
            } else if coded.is_bidirectional {
                passed
            } else {
                // Its number must not be missing.
                Fate::Decode(Discard::NonReference)
            }
        };
        Some(self.group.iter().enumerate().map(fate).collect())
    }
}
