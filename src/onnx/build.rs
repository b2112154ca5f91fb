//! Putting an ONNX graph together, node by node.

use prost::Message;

use super::proto::{
    AttributeProto, Dim, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
    data_type,
};

/// ONNX 1.15: the first operator set with `Gelu`.
const OPSET: i64 = 20;
const IR_VERSION: i64 = 9;

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

    /// Adds a node with one output, which is named `output`, as is the node.
    pub(super) fn node(
        &mut self,
        op: &str,
        output: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) -> Name {
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
        });
        output.to_owned()
    }

    /// The graph as an ONNX file's bytes: the same for the same calls.
    pub(super) fn finish(self) -> Vec<u8> {
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "cinelex".to_owned(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        };
        model.encode_to_vec()
    }

    fn initializer(&mut self, name: &str, data_type: i32, dims: &[usize], raw: Vec<u8>) -> Name {
        self.graph.initializer.push(TensorProto {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type,
            name: name.to_owned(),
            raw_data: raw,
        });
        name.to_owned()
    }
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
