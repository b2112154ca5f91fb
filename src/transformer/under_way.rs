//! Captions that are being written, between one word and the next.

use ndarray::{
    Array, Array1, Array2, ArrayBase, ArrayD, Axis, CowArray, Data, Ix2, IxDyn, RemoveAxis,
};

use super::beams::Row;
use super::captioner::{Reading, misshapen, taken};
use crate::error::{Error, Result};
use crate::model::{Session, Tensor};
use crate::onnx::transformer::Network;
use crate::text::pieces::SEP;

/// Captions that are being written of what was read.
pub(super) struct UnderWay<'a> {
    /// What was read of the segments that are not over.
    keys: CowArray<'a, f32, IxDyn>,
    values: CowArray<'a, f32, IxDyn>,
    bias: CowArray<'a, f32, Ix2>,
    /// Which these are.
    segments: Vec<usize>,
    /// `[layers, segments, captions, heads, words, head]`: of the words written so far. Segments have as many
    /// captions as that of them which has most; those that only fill up are of no meaning.
    written_keys: ArrayD<f32>,
    written_values: ArrayD<f32>,
    /// The last word of each caption: `[segments, captions, 1]`.
    words: ArrayD<i64>,
    /// Where the beam search's rows are among all captions.
    rows: Vec<usize>,
}

/// No words: `[layers, segments, 1, heads, 0, head]`.
pub(super) fn nothing_written(network: &Network, segments: usize) -> ArrayD<f32> {
    ArrayD::zeros(IxDyn(&[network.layers, segments, 1, network.heads, 0, network.head()]))
}

impl<'a> UnderWay<'a> {
    pub(super) fn new(network: &Network, read: &'a Reading) -> UnderWay<'a> {
        let segments = read.bias.nrows();
        let nothing = nothing_written(network, segments);
        UnderWay {
            keys: read.keys.view().into(),
            values: read.values.view().into(),
            bias: read.bias.view().into(),
            segments: (0..segments).collect(),
            written_keys: nothing.clone(),
            written_values: nothing,
            words: ArrayD::zeros(IxDyn(&[segments, 1, 1])),
            rows: (0..segments).collect(),
        }
    }

    /// Goes on with these rows.
    pub(super) fn follow(&mut self, rows: &[Row]) -> Result<()> {
        let groups: Vec<&[Row]> = rows.chunk_by(|a, b| a.of == b.of).collect();
        let segments: Vec<usize> = groups.iter().map(|group| group[0].of).collect();
        if segments != self.segments {
            let place = |of: &usize| self.segments.iter().position(|known| known == of);
            let kept: Vec<usize> = segments.iter().filter_map(place).collect();
            self.keys = chosen(&self.keys, Axis(1), &kept).into();
            self.values = chosen(&self.values, Axis(1), &kept).into();
            self.bias = chosen(&self.bias, Axis(0), &kept).into();
        }
        let captions = groups.iter().map(|group| group.len()).max().unwrap_or(0);
        let mut parents = vec![0; groups.len() * captions];
        self.words = ArrayD::from_elem(IxDyn(&[groups.len(), captions, 1]), i64::from(SEP));
        let mut places = Vec::with_capacity(rows.len());
        for (segment, group) in groups.iter().enumerate() {
            for (caption, row) in group.iter().enumerate() {
                let place = segment * captions + caption;
                parents[place] = self.rows[row.parent];
                self.words[[segment, caption, 0]] = i64::from(row.last);
                places.push(place);
            }
        }
        (self.segments, self.rows) = (segments, places);
        for written in [&mut self.written_keys, &mut self.written_values] {
            *written = of_parents(std::mem::take(written), &parents, captions)?;
        }
        Ok(())
    }

    /// The log-probabilities of each row's next word.
    pub(super) fn step(&mut self, write: &mut Session) -> Result<Array2<f32>> {
        let (segments, words) = (self.segments.len(), self.written_keys.len_of(Axis(4)));
        let bias = self.bias.view().into_shape_with_order([segments, 1, 1, 1, self.bias.ncols()]);
        let inputs = [
            ("words", Tensor::i64(&self.words)),
            ("places", Tensor::i64(Array1::from_elem(1, words as i64))),
            ("keys", Tensor::f32(&self.keys)),
            ("values", Tensor::f32(&self.values)),
            ("bias", Tensor::f32(bias.map_err(misshapen)?)),
            ("written_keys", Tensor::f32(&self.written_keys)),
            ("written_values", Tensor::f32(&self.written_values)),
            // A word sees all before it and itself.
            ("order", Tensor::f32(Array2::zeros((1, words + 1)))),
        ];
        let mut outputs = write.run(&inputs)?;
        self.written_keys = taken(&mut outputs, "all_keys")?;
        self.written_values = taken(&mut outputs, "all_values")?;
        let next = taken(&mut outputs, "log_probabilities")?;
        let vocabulary = next.len_of(Axis(3));
        let captions = next.len() / vocabulary.max(1);
        let next = next.into_shape_with_order((captions, vocabulary)).map_err(misshapen)?;
        Ok(if self.rows.len() == captions { next } else { next.select(Axis(0), &self.rows) })
    }
}

/// Keys or values of the written words of captions that go on from these of the captions before, as many of
/// each segment.
fn of_parents(written: ArrayD<f32>, parents: &[usize], captions: usize) -> Result<ArrayD<f32>> {
    let &[layers, segments, before, heads, words, head] = written.shape() else {
        return Err(Error::internal("the graph that writes keeps its words in another shape"));
    };
    let all = [layers, segments * before, heads, words, head];
    let written = written.into_shape_with_order(all).map_err(misshapen)?;
    let shape = [layers, parents.len() / captions.max(1), captions, heads, words, head];
    let written = chosen(&written, Axis(1), parents).into_shape_with_order(shape);
    Ok(written.map_err(misshapen)?.into_dyn())
}

/// These rows along an axis, laid out row by row, as the graphs want them.
fn chosen<S: Data<Elem = f32>, D: RemoveAxis>(
    array: &ArrayBase<S, D>,
    axis: Axis,
    rows: &[usize],
) -> Array<f32, D> {
    array.select(axis, rows).as_standard_layout().into_owned()
}
