//! The graph's rules as checks that run on any stage. Tests call these for every stage there is.
//!
//! Each check panics with what was broken, so that it reads as an assertion in a test.

use super::{
    Cancel, Event, Fold, Inlet, Item, Map, Message, Outlet, QueueLimits, Run, Sink, Source,
    StreamId, Streams,
};
use crate::error::Result;
use crate::time::Timestamp;

/// A stream written down: what a stage was given, or what it gave.
pub type Script<T> = Vec<Event<T>>;

/// What came out of a stage, with the two things that tests compare.
#[derive(Debug)]
pub struct Outcome<T> {
    pub items: Vec<T>,
    pub gaps: usize,
    /// How the stream ended.
    pub end: Result<()>,
}

const LIMITS: QueueLimits = QueueLimits { items: 4, bytes: 1 << 20 };

/// Plays one stream's script.
struct Player<T> {
    stream: StreamId,
    script: Script<T>,
}

impl<T: Item> Source for Player<T> {
    type Out = T;
    const NAME: &'static str = "player";

    fn read(&mut self, out: &mut Outlet<'_, T>) -> Result<Streams> {
        out.begin(self.stream);
        for event in std::mem::take(&mut self.script) {
            if out.send(event).is_err() {
                break;
            }
        }
        Ok(Streams::Over)
    }
}

/// Writes down what arrives, and holds every stream to the rules.
struct Recorder<T> {
    streams: Vec<Stream<T>>,
}

struct Stream<T> {
    items: Vec<T>,
    gaps: usize,
    watermark: Option<Timestamp>,
    end: Option<Result<()>>,
}

impl<T: Item> Sink for Recorder<T> {
    type In = T;
    type Ack = ();
    const NAME: &'static str = "recorder";

    fn accept(&mut self, message: Message<T>) -> Result<Option<()>> {
        let stream = usize::try_from(message.stream.0).expect("tests number streams from 0");
        let state = &mut self.streams[stream];
        assert!(state.end.is_none(), "stream {stream}: {:?} after the end", Shown(&message.event));
        match message.event {
            Event::Item(item) => {
                assert!(
                    state.watermark.is_none_or(|mark| mark <= item.start()),
                    "stream {stream}: an item at {} after watermark {:?}",
                    item.start(),
                    state.watermark,
                );
                state.items.push(item);
            }
            Event::Watermark(mark) => {
                assert!(
                    state.watermark.is_none_or(|earlier| earlier <= mark),
                    "stream {stream}: watermark went back from {:?} to {mark}",
                    state.watermark,
                );
                state.watermark = Some(mark);
            }
            Event::Gap(_) => state.gaps += 1,
            Event::End(end) => state.end = Some(end),
        }
        Ok(None)
    }
}

/// An event without its item, which need not be `Debug`.
struct Shown<'a, T>(&'a Event<T>);

impl<T> std::fmt::Debug for Shown<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Event::Item(_) => f.write_str("item"),
            Event::Watermark(at) => write!(f, "watermark {at}"),
            Event::Gap(gap) => write!(f, "gap {}", gap.span),
            Event::End(end) => write!(f, "end {end:?}"),
        }
    }
}

fn run<'env, T: Item + 'env, S: Source + 'env>(
    sources: Vec<S>,
    streams: usize,
    stage: impl FnOnce(&mut Run<'_, 'env>, Inlet<S::Out>) -> Result<Inlet<T>>,
) -> Vec<Outcome<T>> {
    let new = || Stream { items: Vec::new(), gaps: 0, watermark: None, end: None };
    let mut recorder = Recorder { streams: std::iter::repeat_with(new).take(streams).collect() };
    Run::execute(LIMITS, &Cancel::default(), |run| {
        let inlet = run.sources(sources)?;
        let inlet = stage(run, inlet)?;
        run.sink(inlet, &mut recorder, |_| {})
    })
    .unwrap_or_else(|error| panic!("the run failed: {error}"));
    recorder
        .streams
        .into_iter()
        .enumerate()
        .map(|(stream, state)| Outcome {
            items: state.items,
            gaps: state.gaps,
            end: state.end.unwrap_or_else(|| panic!("stream {stream} never ended")),
        })
        .collect()
}

/// A source a stream, so that their events mix.
fn players<T: Item>(scripts: Vec<Script<T>>) -> Vec<Player<T>> {
    (0..).map(StreamId).zip(scripts).map(|(stream, script)| Player { stream, script }).collect()
}

/// Runs a source alone and holds its `streams`, numbered from 0, to the rules.
pub fn check_source<S: Source>(source: S, streams: usize) -> Vec<Outcome<S::Out>> {
    run(vec![source], streams, |_, inlet| Ok(inlet))
}

/// Runs a fold over the streams that `scripts` gives (each call the same), and holds every stream to
/// the rules: with the watermarks as given, with none, and with one before every item; all streams
/// together, and each alone. Items must be the `same` each time. Returns what came out at first.
pub fn check_fold<F: Fold>(
    make: impl Fn() -> F + Send + Sync,
    scripts: impl Fn() -> Vec<Script<F::In>>,
    same: impl Fn(&F::Out, &F::Out) -> bool,
) -> Vec<Outcome<F::Out>> {
    let fold = |scripts: Vec<Script<F::In>>| {
        let streams = scripts.len();
        run(players(scripts), streams, |run, inlet| run.fold(inlet, |_| make()))
    };
    let first = fold(scripts());
    let without = |script: Script<F::In>| -> Script<F::In> {
        script.into_iter().filter(|event| !matches!(event, Event::Watermark(_))).collect()
    };
    let with = |script: Script<F::In>| -> Script<F::In> {
        let mark = |event: Event<F::In>| match &event {
            Event::Item(item) => vec![Event::Watermark(item.start()), event],
            _ => vec![event],
        };
        without(script).into_iter().flat_map(mark).collect()
    };
    let none = fold(scripts().into_iter().map(without).collect());
    assert_same(&first, &none, &same, "without watermarks");
    let every = fold(scripts().into_iter().map(with).collect());
    assert_same(&first, &every, &same, "with a watermark before every item");
    let alone: Vec<_> = scripts().into_iter().flat_map(|script| fold(vec![script])).collect();
    assert_same(&first, &alone, &same, "with each stream alone");
    first
}

/// Runs a map over streams of items and holds every stream to the rules: all streams together and
/// each alone must give the `same` results, and a `bad` item in the midst of the first stream must
/// end that one with an error and leave the others as they were.
pub fn check_map<M: Map>(
    make: impl Fn() -> M,
    streams: impl Fn() -> Vec<Vec<M::In>>,
    bad: Option<M::In>,
    same: impl Fn(&M::Out, &M::Out) -> bool,
) -> Vec<Outcome<M::Out>> {
    let script = |items: Vec<M::In>| -> Script<M::In> {
        let events = items.into_iter().flat_map(|item| {
            let mark = Event::Watermark(item.start());
            [mark, Event::Item(item)]
        });
        events.chain([Event::End(Ok(()))]).collect()
    };
    let map = |scripts: Vec<Script<M::In>>| {
        let streams = scripts.len();
        let stage = make();
        run(players(scripts), streams, |run, inlet| run.map(inlet, stage))
    };
    let first = map(streams().into_iter().map(script).collect());
    let counts: Vec<_> = streams().iter().map(Vec::len).collect();
    assert_eq!(first.iter().map(|outcome| outcome.items.len()).collect::<Vec<_>>(), counts);
    let alone: Vec<_> = streams().into_iter().flat_map(|items| map(vec![script(items)])).collect();
    assert_same(&first, &alone, &same, "with each stream alone");
    if let Some(bad) = bad {
        let mut scripts: Vec<_> = streams().into_iter().map(script).collect();
        let middle = scripts[0].len() / 2 / 2 * 2;
        scripts[0].insert(middle, Event::Item(bad));
        let spoilt = map(scripts);
        assert!(spoilt[0].end.is_err(), "the stream with the bad item ended well");
        assert_eq!(spoilt[0].items.len(), middle / 2, "items before the bad one");
        assert_same(&first[1..], &spoilt[1..], &same, "beside a stream with a bad item");
    }
    first
}

fn assert_same<T>(
    first: &[Outcome<T>],
    second: &[Outcome<T>],
    same: &impl Fn(&T, &T) -> bool,
    how: &str,
) {
    assert_eq!(first.len(), second.len());
    for (stream, (a, b)) in first.iter().zip(second).enumerate() {
        assert_eq!(a.items.len(), b.items.len(), "stream {stream}: other items {how}");
        for (place, (x, y)) in a.items.iter().zip(&b.items).enumerate() {
            assert!(same(x, y), "stream {stream}: item {place} is another {how}");
        }
        assert_eq!(a.gaps, b.gaps, "stream {stream}: other gaps {how}");
        assert_eq!(a.end.is_ok(), b.end.is_ok(), "stream {stream}: another end {how}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    use crate::time::Micros;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug, Clone, PartialEq)]
    struct Number(i64);

    impl Item for Number {
        fn start(&self) -> Timestamp {
            Timestamp(self.0.abs())
        }
        fn bytes(&self) -> usize {
            8
        }
    }

    /// Doubles; refuses negative numbers.
    struct Double;

    impl Map for Double {
        type In = Number;
        type Out = Number;
        const NAME: &'static str = "double";
        fn max_batch(&self) -> usize {
            3
        }
        fn map(&mut self, batch: Vec<Number>) -> Vec<Result<Number>> {
            assert!(batch.len() <= 3);
            let double = |Number(number)| {
                if number < 0 { Err(Error::corrupt("negative")) } else { Ok(Number(number * 2)) }
            };
            batch.into_iter().map(double).collect()
        }
    }

    /// The sum of the numbers in each ten microseconds.
    #[derive(Default)]
    struct Sum {
        ten: i64,
        sum: i64,
    }

    impl Sum {
        fn close(&mut self, through: Timestamp, emit: &mut dyn FnMut(Event<Number>)) {
            if through.0 >= self.ten + 10 {
                if self.sum > 0 {
                    emit(Event::Item(Number(self.ten)));
                }
                *self = Sum { ten: through.0 / 10 * 10, sum: 0 };
                emit(Event::Watermark(Timestamp(self.ten)));
            }
        }
    }

    impl Fold for Sum {
        type In = Number;
        type Out = Number;
        const NAME: &'static str = "sum";
        fn on(&mut self, event: Event<Number>, emit: &mut dyn FnMut(Event<Number>)) -> Result<()> {
            match event {
                Event::Item(number) => {
                    self.close(number.start(), emit);
                    self.sum += number.0;
                }
                Event::Watermark(at) => self.close(at, emit),
                Event::Gap(gap) => emit(Event::Gap(gap)),
                Event::End(_) => self.close(Timestamp(self.ten) + Micros(10), emit),
            }
            Ok(())
        }
    }

    fn numbers() -> impl Strategy<Value = Vec<Vec<i64>>> {
        let stream = prop::collection::vec(1i64..200, 0..30).prop_map(|mut numbers| {
            numbers.sort_unstable();
            numbers
        });
        prop::collection::vec(stream, 1..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_map_keeps_the_rules(streams in numbers()) {
            let items = || {
                let stream = |numbers: &Vec<i64>| numbers.iter().map(|&n| Number(n)).collect();
                streams.iter().map(stream).collect()
            };
            check_map(|| Double, items, Some(Number(-500)), |a, b| a == b);
        }

        #[test]
        fn a_fold_keeps_the_rules(streams in numbers()) {
            let scripts = || {
                let script = |numbers: &Vec<i64>| {
                    let items = numbers.iter().map(|&n| Event::Item(Number(n)));
                    items.chain([Event::Watermark(Timestamp(300)), Event::End(Ok(()))]).collect()
                };
                streams.iter().map(script).collect()
            };
            check_fold(Sum::default, scripts, |a, b| a == b);
        }
    }

    /// A source of one endless stream that counts what it gave.
    struct Endless(Arc<AtomicUsize>);

    impl Source for Endless {
        type Out = Number;
        const NAME: &'static str = "endless";
        fn read(&mut self, out: &mut Outlet<'_, Number>) -> Result<Streams> {
            out.begin(StreamId(0));
            loop {
                let number = self.0.fetch_add(1, Ordering::SeqCst) as i64;
                if out.send(Event::Item(Number(number))).is_err() {
                    return Ok(Streams::MayFollow);
                }
            }
        }
    }

    /// Cancels after some items, or fails.
    struct Stop {
        after: usize,
        cancel: Option<Cancel>,
        end: Option<Result<()>>,
    }

    impl Sink for Stop {
        type In = Number;
        type Ack = ();
        const NAME: &'static str = "stop";
        fn accept(&mut self, message: Message<Number>) -> Result<Option<()>> {
            if let Event::End(end) = message.event {
                self.end = Some(end);
                return Ok(None);
            }
            self.after -= 1;
            match (&self.cancel, self.after) {
                (Some(cancel), 0) => {
                    cancel.cancel();
                    self.after = usize::MAX;
                }
                (None, 0) => return Err(Error::exhausted("disk full")),
                _ => {}
            }
            Ok(None)
        }
    }

    fn run_endless(sink: &mut Stop, cancel: &Cancel) -> (Result<()>, usize) {
        let given = Arc::new(AtomicUsize::new(0));
        let result = Run::execute(LIMITS, cancel, |run| {
            let inlet = run.sources(vec![Endless(Arc::clone(&given))])?;
            let inlet = run.map(inlet, Double)?;
            run.sink(inlet, sink, |_| {})
        });
        (result.map(|_| ()), given.load(Ordering::SeqCst))
    }

    #[test]
    fn a_cancelled_run_ends_its_streams_as_cancelled() {
        let cancel = Cancel::default();
        let mut sink = Stop { after: 20, cancel: Some(cancel.clone()), end: None };
        let (result, _) = run_endless(&mut sink, &cancel);
        assert!(result.is_ok());
        let end = sink.end.expect("an end").expect_err("a cancelled one");
        assert_eq!(end.kind(), crate::error::Kind::Cancelled);
    }

    #[test]
    fn a_sink_that_cannot_store_stops_the_run_and_the_queues_bound_what_was_read() {
        let mut sink = Stop { after: 20, cancel: None, end: None };
        let (result, given) = run_endless(&mut sink, &Cancel::default());
        assert!(result.expect_err("the sink's error").to_string().contains("disk full"));
        // Two queues of 4, a batch of 3 in the map, and one in hand at each end.
        assert!(given <= 20 + 4 + 4 + 3 + 3 + 2, "{given} items were read for 20 stored");
    }

    /// Gives a stream's beginning and then panics.
    struct Panics;

    impl Source for Panics {
        type Out = Number;
        const NAME: &'static str = "panics";
        fn read(&mut self, out: &mut Outlet<'_, Number>) -> Result<Streams> {
            out.begin(StreamId(0));
            for number in 1.. {
                assert!(number < 3, "out of numbers");
                if out.send(Event::Item(Number(number))).is_err() {
                    break;
                }
            }
            Ok(Streams::Over)
        }
    }

    #[test]
    fn a_stage_that_panics_is_an_error_of_the_run() {
        let mut sink = Stop { after: usize::MAX, cancel: None, end: None };
        let result = Run::execute(LIMITS, &Cancel::default(), |run| {
            let inlet = run.sources(vec![Panics])?;
            run.sink(inlet, &mut sink, |_| {})
        });
        let error = result.expect_err("the panic").to_string();
        assert!(error.contains("panics panicked: out of numbers"), "{error}");
    }
}
