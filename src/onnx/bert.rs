//! A sentence encoder as an ONNX graph: BERT with mean pooling and L2 norm, its matrices in 8 bits.
//!
//! Devlin and others, "BERT" (2018); Reimers and Gurevych, "Sentence-BERT" (2019).

use super::blocks;
use super::build::{Attribute, GraphBuilder, batch_of};
use super::checkpoint::Checkpoint;
use super::proto::Dim;
use crate::error::{Error, Result};
use crate::model::TextSpec;

/// Of the layer normalizations of BERT.
const EPSILON: f32 = 1e-12;

/// What is added to the attention paid to padding.
const MASKED: f32 = -1e4;

struct Network<'a> {
    graph: GraphBuilder,
    checkpoint: &'a mut Checkpoint,
    /// Length of a token's vector.
    dim: usize,
    heads: usize,
}

/// Writes the network as an ONNX file, with the inputs and the output that `spec` names. Sizes
/// other than the number of heads come from the checkpoint.
///
/// # Errors
/// `Corrupt` where the checkpoint lacks a tensor or has another shape; `InvalidInput` where
/// `spec` asks for what this network is not.
pub(super) fn convert(
    checkpoint: &mut Checkpoint,
    spec: &TextSpec,
    heads: usize,
) -> Result<Vec<u8>> {
    let wrong = |why: &str| Error::invalid_input(format!("{why}: correct the manifest"));
    let size = |name: &str| match checkpoint.shape(name) {
        Some([rows, columns]) => Ok((*rows, *columns)),
        _ => Err(Error::corrupt(format!("the checkpoint has no matrix {name}"))),
    };
    let (vocabulary, dim) = size("embeddings.word_embeddings.weight")?;
    let (positions, _) = size("embeddings.position_embeddings.weight")?;
    let (inner, _) = size("encoder.layer.0.intermediate.dense.weight")?;
    if dim != spec.dim || spec.max_tokens > positions {
        let found = format!("the checkpoint has dim = {dim} and max_tokens <= {positions}");
        return Err(wrong(&found));
    }
    if !dim.is_multiple_of(heads) {
        return Err(wrong(&format!("dim = {dim} is no multiple of heads = {heads}")));
    }
    let layer_name = |layer: usize| format!("encoder.layer.{layer}.output.dense.weight");
    let layers = (0..).take_while(|&layer| checkpoint.shape(&layer_name(layer)).is_some()).count();

    let graph = GraphBuilder::new("sentence-bert");
    let mut network = Network { graph, checkpoint, dim, heads };
    let texts = || vec![Dim::Named("N".to_owned()), Dim::Named("T".to_owned())];
    let ids = network.graph.input_i64(&spec.ids, texts());
    let mask = network.graph.input_i64(&spec.mask, texts());
    let to_f32 = [("to", Attribute::Int(super::proto::data_type::FLOAT.into()))];
    let mask = network.graph.node("Cast", "mask", &[&mask], &to_f32);
    network.constants();
    let mut tokens = network.embeddings(&ids, vocabulary, positions)?;
    let masked = network.graph.node("Sub", "padding", &["one", &mask], &[]);
    let masked = network.graph.node("Mul", "padding_bias", &[&masked, "masked"], &[]);
    let bias = network.graph.node("Unsqueeze", "attention_bias", &[&masked, "axes_1_2"], &[]);
    for layer in 0..layers {
        tokens = network.layer(layer, &tokens, &bias, inner)?;
    }
    network.pool(&tokens, &mask, &spec.output);
    Ok(network.graph.finish())
}

impl Network<'_> {
    fn constants(&mut self) {
        let head = (self.dim / self.heads) as i64;
        let graph = &mut self.graph;
        graph.f32("one", &[], &[1.0]);
        graph.f32("masked", &[], &[MASKED]);
        graph.f32("tiny", &[], &[1e-9]);
        for (name, values) in [
            ("axis_1", &[1][..]),
            ("axis_2", &[2]),
            ("axes_1_2", &[1, 2]),
            ("start", &[0]),
            ("split_heads", &[0, 0, self.heads as i64, head]),
            ("join_heads", &[0, 0, self.dim as i64]),
        ] {
            graph.i64(name, &[values.len()], values);
        }
    }

    /// Word, position and type vectors of each token, summed and normalized.
    fn embeddings(&mut self, ids: &str, vocabulary: usize, positions: usize) -> Result<String> {
        let dim = self.dim;
        let words = self.tensor("embeddings.word_embeddings.weight", &[vocabulary, dim])?;
        let mut places = self.take("embeddings.position_embeddings.weight", &[positions, dim])?;
        let types = self.take("embeddings.token_type_embeddings.weight", &[2, dim])?;
        // All tokens are of the first type: its vector can be part of each position's.
        for row in places.chunks_exact_mut(dim) {
            for (value, of_type) in row.iter_mut().zip(&types) {
                *value += of_type;
            }
        }
        let graph = &mut self.graph;
        let places = graph.f32("embeddings.positions", &[positions, dim], &places);
        let words = graph.node("Gather", "words", &[&words, ids], &[]);
        let shape = graph.node("Shape", "input_shape", &[ids], &[("start", Attribute::Int(1))]);
        let places = graph.node("Slice", "positions", &[&places, "start", &shape, "start"], &[]);
        let sum = graph.node("Add", "embeddings.sum", &[&words, &places], &[]);
        self.normalized("embeddings.LayerNorm", &sum)
    }

    /// One layer of the transformer: attention, then two linear layers with GELU between.
    fn layer(&mut self, layer: usize, tokens: &str, bias: &str, inner: usize) -> Result<String> {
        let dim = self.dim;
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        // Queries are scaled here, so that the graph need not scale the scores.
        let scale = 1.0 / ((dim / self.heads) as f32).sqrt();
        let mut heads = |part: &str, scale: f32, order: [i64; 4]| -> Result<String> {
            let linear =
                self.linear(&name(&format!("attention.self.{part}")), tokens, dim, dim, scale)?;
            let split = format!("{linear}.split");
            let split = self.graph.node("Reshape", &split, &[&linear, "split_heads"], &[]);
            let order = [("perm", Attribute::Ints(&order))];
            Ok(self.graph.node("Transpose", &format!("{linear}.heads"), &[&split], &order))
        };
        let queries = heads("query", scale, [0, 2, 1, 3])?;
        let keys = heads("key", 1.0, [0, 2, 3, 1])?;
        let values = heads("value", 1.0, [0, 2, 1, 3])?;

        let graph = &mut self.graph;
        let scores = graph.node("MatMul", &name("scores"), &[&queries, &keys], &[]);
        let scores = graph.node("Add", &name("masked_scores"), &[&scores, bias], &[]);
        let last = [("axis", Attribute::Int(-1))];
        let weights = graph.node("Softmax", &name("attention"), &[&scores], &last);
        let seen = graph.node("MatMul", &name("seen"), &[&weights, &values], &[]);
        let order = [("perm", Attribute::Ints(&[0, 2, 1, 3]))];
        let seen = graph.node("Transpose", &name("seen_by_token"), &[&seen], &order);
        let seen = graph.node("Reshape", &name("seen_joined"), &[&seen, "join_heads"], &[]);

        let seen = self.linear(&name("attention.output.dense"), &seen, dim, dim, 1.0)?;
        let sum = self.graph.node("Add", &name("attention.sum"), &[&seen, tokens], &[]);
        let attended = self.normalized(&name("attention.output.LayerNorm"), &sum)?;
        let wide = self.linear(&name("intermediate.dense"), &attended, dim, inner, 1.0)?;
        let wide = self.graph.node("Gelu", &name("gelu"), &[&wide], &[]);
        let narrow = self.linear(&name("output.dense"), &wide, inner, dim, 1.0)?;
        let sum = self.graph.node("Add", &name("output.sum"), &[&narrow, &attended], &[]);
        self.normalized(&name("output.LayerNorm"), &sum)
    }

    /// The mean over the tokens of the mask, scaled to length 1: `[N, dim]`.
    fn pool(&mut self, tokens: &str, mask: &str, output: &str) {
        let graph = &mut self.graph;
        let drop_axis = [("keepdims", Attribute::Int(0))];
        let mask = graph.node("Unsqueeze", "mask_column", &[mask, "axis_2"], &[]);
        let kept = graph.node("Mul", "kept", &[tokens, &mask], &[]);
        let sum = graph.node("ReduceSum", "kept_sum", &[&kept, "axis_1"], &drop_axis);
        let count = graph.node("ReduceSum", "count", &[&mask, "axis_1"], &drop_axis);
        let count = graph.node("Max", "count_above_0", &[&count, "tiny"], &[]);
        let mean = graph.node("Div", "mean", &[&sum, &count], &[]);
        let length = graph.node("ReduceL2", "length", &[&mean, "axis_1"], &[]);
        let length = graph.node("Max", "length_above_0", &[&length, "tiny"], &[]);
        graph.node("Div", output, &[&mean, &length], &[]);
        graph.output_f32(output, batch_of(&[self.dim]));
    }

    /// `input * weightᵀ + bias`, both times `scale`.
    fn linear(
        &mut self,
        name: &str,
        input: &str,
        inputs: usize,
        outputs: usize,
        scale: f32,
    ) -> Result<String> {
        let scaled = |mut values: Vec<f32>| {
            values.iter_mut().for_each(|value| *value *= scale);
            values
        };
        let weights = scaled(self.take(&format!("{name}.weight"), &[outputs, inputs])?);
        let biases = scaled(self.take(&format!("{name}.bias"), &[outputs])?);
        let bias = self.graph.f32(&format!("{name}.bias"), &[outputs], &biases);
        let product = format!("{name}.product");
        let product = blocks::product(&mut self.graph, &product, input, &weights, inputs);
        Ok(self.graph.node("Add", name, &[&product, &bias], &[]))
    }

    fn normalized(&mut self, name: &str, input: &str) -> Result<String> {
        let weight = self.tensor(&format!("{name}.weight"), &[self.dim])?;
        let bias = self.tensor(&format!("{name}.bias"), &[self.dim])?;
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(EPSILON))];
        let inputs = [input, &weight, &bias];
        Ok(self.graph.node("LayerNormalization", name, &inputs, &attributes))
    }

    /// A tensor of the checkpoint as it is, under its own name.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<String> {
        let values = self.take(name, shape)?;
        Ok(self.graph.f32(name, shape, &values))
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.checkpoint.take(name, shape)
    }
}
