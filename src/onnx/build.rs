//! Putting an ONNX graph together, node by node.

use prost::Message;

use super::proto::{
    AttributeProto, Dim, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, attribute_type, data_location, data_type,
};
use crate::error::{Error, Result};

/// ONNX 1.15: the first operator set with `Gelu`.
const OPSET: i64 = 20;
const IR_VERSION: i64 = 9;
/// Operators that only ONNX Runtime has, and their version.
const RUNTIME_DOMAIN: &str = "com.microsoft";
const RUNTIME_OPSET: i64 = 1;

/// A node's attribute.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attribute<'a> {
    Int(i64),
    Float(f32),
    Ints(&'a [i64]),
}

/// The name of a tensor of the graph.
pub(super) type Name = String;

#[derive(Debug, Default)]
pub(super) struct GraphBuilder {
    graph: GraphProto,
}

impl GraphBuilder {
    pub(super) fn new(name: &str) -> GraphBuilder {
        GraphBuilder { graph: GraphProto { name: name.to_owned(), ..GraphProto::default() } }
    }

    pub(super) fn input_f32(&mut self, name: &str, dims: Vec<Dim>) -> Name {
        self.graph.input.push(value_info(name, data_type::FLOAT, dims));
        name.to_owned()
    }

    pub(super) fn input_i64(&mut self, name: &str, dims: Vec<Dim>) -> Name {
        self.graph.input.push(value_info(name, data_type::INT64, dims));
        name.to_owned()
    }

    /// Makes the tensor `name` an output.
    pub(super) fn output_f32(&mut self, name: &str, dims: Vec<Dim>) {
        self.graph.output.push(value_info(name, data_type::FLOAT, dims));
    }

    pub(super) fn f32(&mut self, name: &str, dims: &[usize], values: &[f32]) -> Name {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, data_type::FLOAT, dims, raw)
    }

    /// Values rounded to 16 bits.
    pub(super) fn f16(&mut self, name: &str, dims: &[usize], values: &[f32]) -> Name {
        let half = |value: &f32| half::f16::from_f32(*value).to_le_bytes();
        self.initializer(name, data_type::FLOAT16, dims, values.iter().flat_map(half).collect())
    }

    pub(super) fn i64(&mut self, name: &str, dims: &[usize], values: &[i64]) -> Name {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, data_type::INT64, dims, raw)
    }

    pub(super) fn i32(&mut self, name: &str, dims: &[usize], values: &[i32]) -> Name {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, data_type::INT32, dims, raw)
    }

    pub(super) fn i8(&mut self, name: &str, dims: &[usize], values: &[i8]) -> Name {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, data_type::INT8, dims, raw)
    }

    pub(super) fn u8(&mut self, name: &str, dims: &[usize], values: &[u8]) -> Name {
        self.initializer(name, data_type::UINT8, dims, values.to_vec())
    }

    /// Adds a node with one output, which is named `output`, as is the node. An operator that only ONNX Runtime
    /// has is named with its domain: `com.microsoft.MatMulNBits`.
    pub(super) fn node(
        &mut self,
        op: &str,
        output: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) -> Name {
        let (domain, op) = op.rsplit_once('.').unwrap_or(("", op));
        let attribute = |(name, value): &(&str, Attribute<'_>)| {
            let mut proto =
                AttributeProto { name: (*name).to_owned(), ..AttributeProto::default() };
            match value {
                Attribute::Int(i) => (proto.i, proto.r#type) = (*i, attribute_type::INT),
                Attribute::Float(f) => (proto.f, proto.r#type) = (*f, attribute_type::FLOAT),
                Attribute::Ints(ints) => {
                    (proto.ints, proto.r#type) = (ints.to_vec(), attribute_type::INTS);
                }
            }
            proto
        };
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![output.to_owned()],
            name: output.to_owned(),
            op_type: op.to_owned(),
            attribute: attributes.iter().map(attribute).collect(),
            domain: domain.to_owned(),
        });
        output.to_owned()
    }

    /// The graph as an ONNX file's bytes: the same for the same calls.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: OPSET }];
        if self.graph.node.iter().any(|node| node.domain == RUNTIME_DOMAIN) {
            let (domain, version) = (RUNTIME_DOMAIN.to_owned(), RUNTIME_OPSET);
            opset_import.push(OperatorSetIdProto { domain, version });
        }
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "cinelex".to_owned(),
            graph: Some(self.graph),
            opset_import,
        };
        model.encode_to_vec()
    }

    fn initializer(&mut self, name: &str, data_type: i32, dims: &[usize], raw: Vec<u8>) -> Name {
        self.graph.initializer.push(TensorProto {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type,
            name: name.to_owned(),
            raw_data: raw,
            ..TensorProto::default()
        });
        name.to_owned()
    }
}

/// Smaller tensors stay inside the graph: shapes and axes, which ONNX Runtime wants to see there.
const LEAST_BYTES_APART: usize = 1_024;
/// Where tensors may begin in a file of their own: at pages, so that they can be mapped.
const PAGE_BYTES: usize = 4_096;

/// A graph as [`GraphBuilder::finish`] gives it with its weights in another file: the graph that
/// refers to `file` beside it, and what that file must hold (ONNX: "external data").
pub(super) fn weights_apart(graph: &[u8], file: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut model = ModelProto::decode(graph)
        .map_err(|cause| Error::internal("a graph that can't be read").caused_by(cause))?;
    let mut weights = Vec::new();
    let tensors = model.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
    for tensor in tensors.filter(|tensor| tensor.raw_data.len() >= LEAST_BYTES_APART) {
        weights.resize(weights.len().next_multiple_of(PAGE_BYTES), 0);
        let entries = [
            ("location", file.to_owned()),
            ("offset", weights.len().to_string()),
            ("length", tensor.raw_data.len().to_string()),
        ];
        tensor.external_data = entries
            .map(|(key, value)| StringStringEntryProto { key: key.to_owned(), value })
            .to_vec();
        tensor.data_location = data_location::EXTERNAL;
        weights.append(&mut tensor.raw_data);
    }
    Ok((model.encode_to_vec(), weights))
}

/// `[N, dims…]`, where N is known only when the graph is run.
pub(super) fn batch_of(dims: &[usize]) -> Vec<Dim> {
    let fixed = dims.iter().map(|&dim| Dim::Fixed(dim as i64));
    std::iter::once(Dim::Named("N".to_owned())).chain(fixed).collect()
}

fn value_info(name: &str, elem_type: i32, dims: Vec<Dim>) -> ValueInfoProto {
    let dim = dims.into_iter().map(|dim| DimensionProto { value: Some(dim) }).collect();
    let shape = Some(TensorShapeProto { dim });
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type, shape }) }),
    }
}
