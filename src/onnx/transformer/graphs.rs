//! The graphs that read, guess and write, as ONNX files.

use std::collections::BTreeMap;

use super::{EPSILON, Network, Tensors, TokenKind, Weights};
use crate::error::Result;
use crate::onnx::build::{Attribute, GraphBuilder};
use crate::onnx::proto::{Dim, data_type};

/// How a graph keeps its matrices; it computes in 32 bits with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Fp32,
    Fp16,
    /// One scale for each output of a matrix and each entry of a table.
    Int8,
}

/// The graph that reads, as an ONNX file. `N` segments at a time, `W` words, `V` visual tokens:
///
/// - `words` i64 `[N, W]`: `[CLS] words [>]`, padded at the end;
/// - `features` and `centroids` f32 `[N, V, length]`, those that the network has;
/// - `clips` and `cells` i64 `[N, V]`: the clip of each visual token, and its part of the picture;
/// - `bias` f32 `[N, 1, 1, W + V]`: 0 for what is there, [`UNSEEN`] for padding.
///
/// It gives `keys` and `values` f32 `[layers, N, heads, W + V, head]`, and `embedding` f32 `[N, space]`
/// of length 1.
///
/// # Errors
/// As [`Network::check`] and [`Network::check_tensors`].
///
/// [`UNSEEN`]: super::UNSEEN
pub fn reading_graph(
    network: &Network,
    tensors: &Tensors,
    precision: Precision,
) -> Result<Vec<u8>> {
    let mut writer = Writer::new("cinelex-read", network, tensors, precision, Rows::Segments)?;
    let Read { tokens, keys, values } = writer.read();
    writer.stack("keys", &keys);
    writer.stack("values", &values);
    let n = || named("N");
    let kept = || {
        let sizes = [network.heads as i64, network.head() as i64].map(Dim::Fixed);
        let [heads, head] = sizes;
        vec![Dim::Fixed(network.layers as i64), n(), heads, named("P"), head]
    };
    writer.graph.output_f32("keys", kept());
    writer.graph.output_f32("values", kept());

    let embedding = match network.embedder_input() {
        None => {
            let first = writer.graph.i64("first", &[], &[0]);
            let first = writer.graph.node("Gather", "cls", &[&tokens, &first], &[("axis", int(1))]);
            writer.product("space", &first)
        }
        Some((input, length)) => writer.embedder(input, length),
    };
    let last = writer.graph.i64("axis_1", &[1], &[1]);
    let length = writer.graph.node("ReduceL2", "space.length", &[&embedding, &last], &[]);
    let tiny = writer.graph.f32("tiny", &[], &[1e-9]);
    let length = writer.graph.node("Max", "space.length_above_0", &[&length, &tiny], &[]);
    writer.graph.node("Div", "embedding", &[&embedding, &length], &[]);
    writer.graph.output_f32("embedding", vec![n(), Dim::Fixed(network.space as i64)]);
    Ok(writer.graph.finish())
}

/// The graph that guesses hidden words, as an ONNX file. Its inputs are those of [`reading_graph`]; a
/// hidden word reads `[MASK]`. It gives `guesses` f32 `[N, W, vocabulary]`: for each word, the
/// log-probabilities of what it is.
///
/// # Errors
/// As [`Network::check`] and [`Network::check_tensors`].
pub fn guessing_graph(
    network: &Network,
    tensors: &Tensors,
    precision: Precision,
) -> Result<Vec<u8>> {
    let mut writer = Writer::new("cinelex-guess", network, tensors, precision, Rows::Segments)?;
    let Read { tokens, .. } = writer.read();
    let length = [("start", int(1))];
    let words = writer.graph.node("Shape", "words.count", &["words"], &length);
    let from = writer.graph.i64("guesses.from", &[1], &[0]);
    let axis = writer.graph.i64("guesses.axis", &[1], &[1]);
    let inputs = [&tokens[..], &from, &words, &axis];
    let words = writer.graph.node("Slice", "guesses.words", &inputs, &[]);
    writer.next_words(&words, "guesses");
    let vocabulary = Dim::Fixed(network.vocabulary as i64);
    writer.graph.output_f32("guesses", vec![named("N"), named("W"), vocabulary]);
    Ok(writer.graph.finish())
}

/// The graph that writes, as an ONNX file. Of each of `N` segments, `G` captions at a time, `S` words more of
/// each:
///
/// - `words` i64 `[N, G, S]`, the first of a caption being `[SEP]`; `places` i64 `[S]`: 0 for that one;
/// - `keys` and `values` f32 `[layers, N, heads, P, head]`: of what was read of a segment, there once for all
///   its captions;
/// - `bias` f32 `[N, 1, 1, 1, P]`: 0 for what is there of it, [`UNSEEN`] for padding;
/// - `written_keys` and `written_values` f32 `[layers, N, G, heads, W, head]`: of the words written before;
/// - `order` f32 `[S, W + S]`: 0 for the words that a word may see, else [`UNSEEN`].
///
/// It gives `log_probabilities` f32 `[N, G, S, vocabulary]` of the word after each, and `all_keys` and
/// `all_values` f32 `[layers, N, G, heads, W + S, head]`: those of the words written before and of these.
///
/// # Errors
/// As [`Network::check`] and [`Network::check_tensors`].
///
/// [`UNSEEN`]: super::UNSEEN
pub fn writing_graph(
    network: &Network,
    tensors: &Tensors,
    precision: Precision,
) -> Result<Vec<u8>> {
    let mut writer = Writer::new("cinelex-write", network, tensors, precision, Rows::Captions)?;
    let (n, g, s) = (|| named("N"), || named("G"), || named("S"));
    let words = writer.graph.input_i64("words", vec![n(), g(), s()]);
    let places = writer.graph.input_i64("places", vec![s()]);
    let sizes = [network.layers, network.heads, network.head()].map(|n| Dim::Fixed(n as i64));
    let read = || {
        let [layers, heads, head] = sizes.clone();
        vec![layers, n(), heads, named("P"), head]
    };
    let written = |words: &str| {
        let [layers, heads, head] = sizes.clone();
        vec![layers, n(), g(), heads, named(words), head]
    };
    let one = || Dim::Fixed(1);
    let keys = writer.graph.input_f32("keys", read());
    let values = writer.graph.input_f32("values", read());
    let bias = writer.graph.input_f32("bias", vec![n(), one(), one(), one(), named("P")]);
    let written_keys = writer.graph.input_f32("written_keys", written("W"));
    let written_values = writer.graph.input_f32("written_values", written("W"));
    let order = writer.graph.input_f32("order", vec![s(), named("W_and_S")]);
    writer.prepare_groups(&words, &keys);
    let tokens = writer.words(&words, Some(&places), TokenKind::Written);
    let mut tokens = writer.normalized("embedding.norm", &tokens, network.dim);
    let (mut all_keys, mut all_values) = (Vec::new(), Vec::new());
    for layer in 0..network.layers {
        let index = writer.graph.i64(&format!("layers.{layer}.index"), &[], &[layer as i64]);
        let mut of_layer = |all: &str| {
            let name = format!("layers.{layer}.{all}");
            writer.graph.node("Gather", &name, &[all, &index], &[("axis", int(0))])
        };
        let past = Past {
            keys: of_layer(&keys),
            values: of_layer(&values),
            bias: &bias,
            written_keys: of_layer(&written_keys),
            written_values: of_layer(&written_values),
            order: &order,
        };
        let attended = writer.attention_to(layer, &tokens, &past);
        all_keys.push(attended.keys);
        all_values.push(attended.values);
        tokens = writer.inner(layer, &attended.tokens);
    }
    writer.stack("all_keys", &all_keys);
    writer.stack("all_values", &all_values);
    writer.graph.output_f32("all_keys", written("W_and_S"));
    writer.graph.output_f32("all_values", written("W_and_S"));
    let tokens = writer.normalized("norm", &tokens, network.dim);
    writer.next_words(&tokens, "log_probabilities");
    let vocabulary = Dim::Fixed(network.vocabulary as i64);
    writer.graph.output_f32("log_probabilities", vec![n(), g(), s(), vocabulary]);
    Ok(writer.graph.finish())
}

fn named(name: &str) -> Dim {
    Dim::Named(name.to_owned())
}

fn int(value: i64) -> Attribute<'static> {
    Attribute::Int(value)
}

/// What was read: the tokens after the last layer, normalized, and each layer's keys and values.
struct Read {
    tokens: String,
    keys: Vec<String>,
    values: Vec<String>,
}

/// A layer's attention: the tokens after it, and the keys and values of all that are in their row.
struct Attended {
    tokens: String,
    keys: String,
    values: String,
}

/// What captions see in a layer: what was read of their segment, and their words before.
struct Past<'a> {
    keys: String,
    values: String,
    bias: &'a str,
    written_keys: String,
    written_values: String,
    order: &'a str,
}

/// What a graph's tokens are rows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// `[N, tokens, dim]`; with heads: `[N, heads, tokens, head]`.
    Segments,
    /// `[N, G, tokens, dim]`; with heads: `[N, G, heads, tokens, head]`.
    Captions,
}

impl Rows {
    /// Dimensions up to the tokens.
    fn depth(self) -> usize {
        match self {
            Rows::Segments => 2,
            Rows::Captions => 3,
        }
    }

    /// Puts heads before tokens, or tokens before heads.
    fn turn(self) -> Attributes {
        match self {
            Rows::Segments => &[("perm", Attribute::Ints(&[0, 2, 1, 3]))],
            Rows::Captions => &[("perm", Attribute::Ints(&[0, 1, 3, 2, 4]))],
        }
    }

    /// Makes columns of keys.
    fn turn_keys(self) -> Attributes {
        match self {
            Rows::Segments => &[("perm", Attribute::Ints(&[0, 1, 3, 2]))],
            Rows::Captions => &[("perm", Attribute::Ints(&[0, 1, 2, 4, 3]))],
        }
    }
}

type Attributes = &'static [(&'static str, Attribute<'static>)];

const FIRST: Attributes = &[("axis", Attribute::Int(0))];
const LAST: Attributes = &[("axis", Attribute::Int(-1))];
/// `[N, G, heads, …]` as `[N, heads, G, …]`, and back.
const HEADS_FIRST: Attributes = &[("perm", Attribute::Ints(&[0, 2, 1, 3, 4]))];

struct Writer<'a> {
    graph: GraphBuilder,
    network: Network,
    tensors: &'a Tensors,
    precision: Precision,
    rows: Rows,
    /// Tables that the graph has already, by name.
    tables: BTreeMap<String, String>,
}

impl<'a> Writer<'a> {
    fn new(
        name: &str,
        network: &Network,
        tensors: &'a Tensors,
        precision: Precision,
        rows: Rows,
    ) -> Result<Self> {
        network.check()?;
        network.check_tensors(tensors)?;
        let mut graph = GraphBuilder::new(name);
        // 0: as it is.
        let kept = vec![0; rows.depth()];
        let split = [&kept[..], &[network.heads as i64, network.head() as i64]].concat();
        let joined = [&kept[..], &[network.dim as i64]].concat();
        graph.i64("split_heads", &[split.len()], &split);
        graph.i64("join_heads", &[joined.len()], &joined);
        let tables = BTreeMap::new();
        Ok(Writer { graph, network: *network, tensors, precision, rows, tables })
    }

    /// The inputs of what is read, and what the layers make of them.
    fn read(&mut self) -> Read {
        let (n, w, v) = (|| named("N"), || named("W"), || named("V"));
        let words = self.graph.input_i64("words", vec![n(), w()]);
        let mut inputs = Vec::new();
        for (name, length) in self.network.visual_inputs() {
            let dims = vec![n(), v(), Dim::Fixed(length as i64)];
            inputs.push((name, length, self.graph.input_f32(name, dims)));
        }
        let clips = self.graph.input_i64("clips", vec![n(), v()]);
        let cells = self.graph.input_i64("cells", vec![n(), v()]);
        let one = || Dim::Fixed(1);
        let bias = self.graph.input_f32("bias", vec![n(), one(), one(), named("P")]);

        let read = self.words(&words, None, TokenKind::Read);
        let mut seen = Vec::new();
        for (name, length, input) in inputs {
            let input = self.normalized(&format!("visual.{name}.norm"), &input, length);
            seen.push(self.product(&format!("visual.{name}"), &input));
        }
        for (name, index) in [("visual.clip.position", clips), ("visual.cell.position", cells)] {
            let table = self.table(name);
            seen.push(self.graph.node("Gather", &format!("{name}.of"), &[&table, &index], &[]));
        }
        let seen = self.sum("visual.sum", &seen);
        let seen = self.of_kind("visual", &seen, TokenKind::Visual);
        let tokens = self.graph.node("Concat", "tokens", &[&read, &seen], &[("axis", int(1))]);
        let mut tokens = self.normalized("embedding.norm", &tokens, self.network.dim);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for layer in 0..self.network.layers {
            let attended = self.attention(layer, &tokens, &bias);
            keys.push(attended.keys);
            values.push(attended.values);
            tokens = self.inner(layer, &attended.tokens);
        }
        let tokens = self.normalized("norm", &tokens, self.network.dim);
        Read { tokens, keys, values }
    }

    /// The log-probabilities of words, of tokens that are normalized already: the output `name`.
    fn next_words(&mut self, tokens: &str, name: &str) {
        let table = self.table("words.weight");
        let order = [("perm", Attribute::Ints(&[1, 0]))];
        let table = self.graph.node("Transpose", "words.transposed", &[&table], &order);
        let logits = self.graph.node("MatMul", "written.product", &[tokens, &table], &[]);
        let bias = self.vector("written.bias");
        let logits = self.graph.node("Add", "written.logits", &[&logits, &bias], &[]);
        self.graph.node("LogSoftmax", name, &[&logits], &[("axis", int(-1))]);
    }

    /// Vectors of words with those of their places (from 0 on, unless `places` says otherwise).
    fn words(&mut self, words: &str, places: Option<&str>, kind: TokenKind) -> String {
        let table = self.table("words.weight");
        let vectors = self.graph.node("Gather", "words.of", &[&table, words], &[]);
        let positions = self.table("words.position");
        let positions = match places {
            Some(places) => {
                self.graph.node("Gather", "words.position.of", &[&positions, places], &[])
            }
            None => {
                let length = [("start", int(1))];
                let length = self.graph.node("Shape", "words.length", &[words], &length);
                let from = self.graph.i64("from", &[1], &[0]);
                let inputs = [&positions[..], &from, &length, &from];
                self.graph.node("Slice", "words.position.of", &inputs, &[])
            }
        };
        let sum = self.graph.node("Add", "words.sum", &[&vectors, &positions], &[]);
        self.of_kind("words", &sum, kind)
    }

    fn of_kind(&mut self, name: &str, tokens: &str, kind: TokenKind) -> String {
        let row = kind as usize * self.network.dim;
        let values = &self.tensors["kinds.weight"].values[row..row + self.network.dim];
        let kind = self.graph.f32(&format!("{name}.kind"), &[self.network.dim], values);
        self.graph.node("Add", &format!("{name}.embedding"), &[tokens, &kind], &[])
    }

    fn sum(&mut self, name: &str, terms: &[String]) -> String {
        let terms: Vec<&str> = terms.iter().map(String::as_str).collect();
        self.graph.node("Sum", name, &terms, &[])
    }

    /// Tokens that see all in their row which `bias` lets them see.
    fn attention(&mut self, layer: usize, tokens: &str, bias: &str) -> Attended {
        let name = |part: &str| format!("layers.{layer}.attention.{part}");
        let [queries, keys, values] = self.heads(layer, tokens);
        let scores = self.scores(&name("scores"), &queries, &keys, bias);
        let weights = self.graph.node("Softmax", &name("weights"), &[&scores], LAST);
        let seen = self.graph.node("MatMul", &name("seen"), &[&weights, &values], &[]);
        Attended { tokens: self.attended(layer, tokens, &seen), keys, values }
    }

    /// Words of captions that see what was read of their segment and the words before them.
    fn attention_to(&mut self, layer: usize, tokens: &str, past: &Past<'_>) -> Attended {
        let name = |part: &str| format!("layers.{layer}.attention.{part}");
        let [queries, keys, values] = self.heads(layer, tokens);
        let mut all = |part: &str, before: &str, new: &str| {
            self.graph.node("Concat", &name(part), &[before, new], &[("axis", int(3))])
        };
        let keys = all("all_keys", &past.written_keys, &keys);
        let values = all("all_values", &past.written_values, &values);
        // All captions of a segment look at what was read at a time.
        let grouped = self.grouped(&queries, "group_queries");
        let read =
            self.products(&name("read.scores"), &grouped, &past.keys, Rows::Segments.turn_keys());
        let read = self.ungrouped(&read);
        let read = self.graph.node("Add", &name("read.seen"), &[&read, past.bias], &[]);
        let written = self.scores(&name("written.scores"), &queries, &keys, past.order);
        let scores = self.graph.node("Concat", &name("scores"), &[&read, &written], LAST);
        let weights = self.graph.node("Softmax", &name("weights"), &[&scores], LAST);
        let mut part = |part: &str, from: &str, to: &str| {
            let inputs = [&weights, from, to, "last_axis"];
            self.graph.node("Slice", &name(part), &inputs, &[])
        };
        let (read, written) =
            (part("read.weights", "start", "read"), part("written.weights", "read", "end"));
        let read = self.grouped(&read, "group_weights");
        let read = self.graph.node("MatMul", &name("read.values"), &[&read, &past.values], &[]);
        let read = self.ungrouped(&read);
        let inputs = [&written[..], &values];
        let written = self.graph.node("MatMul", &name("written.values"), &inputs, &[]);
        let seen = self.graph.node("Add", &name("seen"), &[&read, &written], &[]);
        Attended { tokens: self.attended(layer, tokens, &seen), keys, values }
    }

    /// What [`Writer::attention_to`] needs in each layer.
    fn prepare_groups(&mut self, words: &str, keys: &str) {
        let graph = &mut self.graph;
        graph.i64("start", &[1], &[0]);
        graph.i64("end", &[1], &[i64::MAX]);
        graph.i64("last_axis", &[1], &[-1]);
        graph.node("Shape", "read", &[keys], &[("start", int(3)), ("end", int(4))]);
        // 0: as it is, -1: what is left.
        graph.i64("group_queries", &[4], &[0, 0, -1, self.network.head() as i64]);
        let group = graph.i64("group", &[3], &[0, 0, -1]);
        graph.node("Concat", "group_weights", &[&group, "read"], FIRST);
        let as_is = graph.i64("as_is", &[2], &[0, 0]);
        let rest = graph.i64("rest", &[1], &[-1]);
        let captions = graph.node("Shape", "captions", &[words], &[("start", int(1))]);
        graph.node("Concat", "ungroup", &[&as_is, &captions, &rest], FIRST);
    }

    /// `[N, G, heads, S, x]` as `[N, heads, G * S, x]`.
    fn grouped(&mut self, of: &str, shape: &str) -> String {
        let turned = self.graph.node("Transpose", &format!("{of}.by_heads"), &[of], HEADS_FIRST);
        self.graph.node("Reshape", &format!("{of}.grouped"), &[&turned, shape], &[])
    }

    /// The way back.
    fn ungrouped(&mut self, of: &str) -> String {
        let split = self.graph.node("Reshape", &format!("{of}.split"), &[of, "ungroup"], &[]);
        self.graph.node("Transpose", &format!("{of}.by_captions"), &[&split], HEADS_FIRST)
    }

    /// Queries, keys and values of a layer's tokens, with heads before tokens.
    fn heads(&mut self, layer: usize, tokens: &str) -> [String; 3] {
        let name = |part: &str| format!("layers.{layer}.attention.{part}");
        let input = self.normalized(&name("norm"), tokens, self.network.dim);
        let turn = self.rows.turn();
        ["query", "key", "value"].map(|part| {
            let linear = self.linear(&name(part), &input);
            let split = name(&format!("{part}.split"));
            let split = self.graph.node("Reshape", &split, &[&linear, "split_heads"], &[]);
            self.graph.node("Transpose", &name(&format!("{part}.heads")), &[&split], turn)
        })
    }

    /// How much queries want of keys, where `bias` lets them.
    fn scores(&mut self, name: &str, queries: &str, keys: &str, bias: &str) -> String {
        let products = self.products(&format!("{name}.free"), queries, keys, self.rows.turn_keys());
        self.graph.node("Add", name, &[&products, bias], &[])
    }

    /// Scaled products; `turn` turns keys over.
    fn products(&mut self, name: &str, queries: &str, keys: &str, turn: Attributes) -> String {
        let graph = &mut self.graph;
        let turned = graph.node("Transpose", &format!("{name}.keys"), &[keys], turn);
        let products = graph.node("MatMul", &format!("{name}.products"), &[queries, &turned], &[]);
        let scale = 1.0 / (self.network.head() as f32).sqrt();
        let scale = graph.f32(&format!("{name}.scale"), &[], &[scale]);
        graph.node("Mul", name, &[&products, &scale], &[])
    }

    /// The tokens with what their heads have seen.
    fn attended(&mut self, layer: usize, tokens: &str, seen: &str) -> String {
        let name = |part: &str| format!("layers.{layer}.attention.{part}");
        let seen = self.graph.node("Transpose", &name("seen.turned"), &[seen], self.rows.turn());
        let seen = self.graph.node("Reshape", &name("joined"), &[&seen, "join_heads"], &[]);
        let output = self.linear(&name("output"), &seen);
        self.graph.node("Add", &name("sum"), &[tokens, &output], &[])
    }

    fn inner(&mut self, layer: usize, tokens: &str) -> String {
        let name = |part: &str| format!("layers.{layer}.inner.{part}");
        let input = self.normalized(&name("norm"), tokens, self.network.dim);
        let up = self.squared(&name("up"), &input);
        let down = self.linear(&name("down"), &up);
        self.graph.node("Add", &name("sum"), &[tokens, &down], &[])
    }

    /// A linear layer, of which what is positive is squared.
    fn squared(&mut self, name: &str, input: &str) -> String {
        let up = self.linear(name, input);
        let up = self.graph.node("Relu", &format!("{name}.relu"), &[&up], &[]);
        self.graph.node("Mul", &format!("{name}.squared"), &[&up, &up], &[])
    }

    /// The embedding, before it is scaled: made of the mean of `input` over the whole pictures.
    fn embedder(&mut self, input: &str, length: usize) -> String {
        let name = |part: &str| format!("space.{part}");
        let graph = &mut self.graph;
        let words = graph.node("Shape", &name("words"), &["words"], &[("start", int(1))]);
        let (end, last) =
            (graph.i64(&name("end"), &[1], &[i64::MAX]), graph.i64(&name("last"), &[1], &[3]));
        let visual = graph.node("Slice", &name("bias"), &["bias", &words, &end, &last], &[]);
        // The bias is 0 for what is there: 1, and 0 for padding.
        let there = graph.node("Exp", &name("there"), &[&visual], &[]);
        let zero = graph.i64(&name("zero"), &[], &[0]);
        let whole = graph.node("Equal", &name("is_whole"), &["cells", &zero], &[]);
        let to_f32 = [("to", int(data_type::FLOAT.into()))];
        let whole = graph.node("Cast", &name("whole"), &[&whole], &to_f32);
        let axes = graph.i64(&name("axes"), &[2], &[1, 2]);
        let whole = graph.node("Unsqueeze", &name("whole.row"), &[&whole, &axes], &[]);
        let counted = graph.node("Mul", &name("counted"), &[&there, &whole], &[]);
        let count = graph.node("ReduceSum", &name("count"), &[&counted, &last], &[]);
        let least = graph.f32(&name("least"), &[], &[1e-9]);
        let count = graph.node("Max", &name("count_above_0"), &[&count, &least], &[]);
        let shares = graph.node("Div", &name("shares"), &[&counted, &count], &[]);
        let axis = graph.i64(&name("axis"), &[1], &[1]);
        let shares = graph.node("Squeeze", &name("shares.row"), &[&shares, &axis], &[]);
        let input = self.normalized("space.norm", input, length);
        let mean = self.graph.node("MatMul", &name("mean.row"), &[&shares, &input], &[]);
        let mean = self.graph.node("Squeeze", &name("mean"), &[&mean, &axis], &[]);
        let up = self.squared("space.up", &mean);
        self.product("space.down", &up)
    }

    fn stack(&mut self, name: &str, layers: &[String]) {
        let at = self.graph.i64(&format!("{name}.axis"), &[1], &[0]);
        let each: Vec<String> = layers
            .iter()
            .map(|layer| {
                self.graph.node("Unsqueeze", &format!("{name}.{layer}"), &[layer, &at], &[])
            })
            .collect();
        let each: Vec<&str> = each.iter().map(String::as_str).collect();
        self.graph.node("Concat", name, &each, &[("axis", int(0))]);
    }

    fn normalized(&mut self, name: &str, input: &str, dim: usize) -> String {
        debug_assert_eq!(self.tensors[&format!("{name}.weight")].shape, [dim]);
        let weight = self.vector(&format!("{name}.weight"));
        let bias = self.vector(&format!("{name}.bias"));
        let attributes = [("axis", int(-1)), ("epsilon", Attribute::Float(EPSILON))];
        self.graph.node("LayerNormalization", name, &[input, &weight, &bias], &attributes)
    }

    fn linear(&mut self, name: &str, input: &str) -> String {
        let product = self.product(name, input);
        let bias = self.vector(&format!("{name}.bias"));
        self.graph.node("Add", &format!("{name}.linear"), &[&product, &bias], &[])
    }

    fn product(&mut self, name: &str, input: &str) -> String {
        let weight = self.matrix(&format!("{name}.weight"), 1);
        self.graph.node("MatMul", &format!("{name}.product"), &[input, &weight], &[])
    }

    /// A table: int8 has a scale for each row.
    fn table(&mut self, name: &str) -> String {
        if let Some(table) = self.tables.get(name) {
            return table.clone();
        }
        let table = self.matrix(name, 0);
        self.tables.insert(name.to_owned(), table.clone());
        table
    }

    fn vector(&mut self, name: &str) -> String {
        let Weights { shape, values } = &self.tensors[name];
        self.graph.f32(name, shape, values)
    }

    /// A matrix, kept in the graph's precision; int8 has a scale for each entry of `axis`. ONNX
    /// Runtime turns it into 32 bits when it loads the graph.
    fn matrix(&mut self, name: &str, axis: usize) -> String {
        let Weights { shape, values } = &self.tensors[name];
        let to_f32 = [("to", int(data_type::FLOAT.into()))];
        match self.precision {
            Precision::Fp32 => self.graph.f32(name, shape, values),
            Precision::Fp16 => {
                let half = self.graph.f16(&format!("{name}.f16"), shape, values);
                self.graph.node("Cast", name, &[&half], &to_f32)
            }
            Precision::Int8 => {
                let (scales, steps) = rounded(values, shape, axis);
                let scale_shape = if axis == 0 { [shape[0], 1] } else { [1, shape[1]] };
                let scales = self.graph.f32(&format!("{name}.scale"), &scale_shape, &scales);
                let steps = self.graph.i8(&format!("{name}.steps"), shape, &steps);
                let steps = self.graph.node("Cast", &format!("{name}.cast"), &[&steps], &to_f32);
                self.graph.node("Mul", name, &[&steps, &scales], &[])
            }
        }
    }
}

/// A matrix in signed 8-bit steps, with the width of a step for each entry of `axis`.
fn rounded(values: &[f32], shape: &[usize], axis: usize) -> (Vec<f32>, Vec<i8>) {
    let columns = shape[1].max(1);
    let entry = |place: usize| if axis == 0 { place / columns } else { place % columns };
    let mut scales = vec![0.0_f32; shape[axis]];
    for (place, value) in values.iter().enumerate() {
        let largest = &mut scales[entry(place)];
        *largest = largest.max(value.abs());
    }
    for scale in &mut scales {
        *scale = (*scale / 127.0).max(f32::MIN_POSITIVE);
    }
    let step = |(place, value): (usize, &f32)| (value / scales[entry(place)]).round() as i8;
    let steps = values.iter().enumerate().map(step).collect();
    (scales, steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_rounded_matrix_is_half_a_step_off_at_most(
            values in prop::collection::vec(-3.0f32..3.0, 12), axis in 0usize..2,
        ) {
            let (scales, steps) = rounded(&values, &[3, 4], axis);
            for (place, (value, step)) in values.iter().zip(&steps).enumerate() {
                let scale = scales[if axis == 0 { place / 4 } else { place % 4 }];
                prop_assert!((f32::from(*step) * scale - value).abs() <= scale * 0.5001);
            }
        }
    }
}
