//! The manifests and small files that are part of the executable.

/// File name and text of each built-in manifest.
pub(super) const MANIFESTS: &[(&str, &str)] = &[
    ("onnxruntime.toml", include_str!("../../models/onnxruntime.toml")),
    ("onnxruntime-cuda.toml", include_str!("../../models/onnxruntime-cuda.toml")),
    ("efficientnet-lite0.toml", include_str!("../../models/efficientnet-lite0.toml")),
    ("efficientnet-lite1.toml", include_str!("../../models/efficientnet-lite1.toml")),
    ("efficientnet-lite2.toml", include_str!("../../models/efficientnet-lite2.toml")),
    ("minilm.toml", include_str!("../../models/minilm.toml")),
    ("silero-vad.toml", include_str!("../../models/silero-vad.toml")),
    ("whisper-tiny.en.toml", include_str!("../../models/whisper-tiny.en.toml")),
    ("whisper-base.toml", include_str!("../../models/whisper-base.toml")),
    ("imagenet-1k.toml", include_str!("../../models/imagenet-1k.toml")),
    ("codebook-default.toml", include_str!("../../models/codebook-default.toml")),
    ("codebook-videobert.toml", include_str!("../../models/codebook-videobert.toml")),
    ("captioner-default.toml", include_str!("../../models/captioner-default.toml")),
];

/// Name and content of the files that built-in manifests name with `path`.
const FILES: &[(&str, &[u8])] = &[
    ("imagenet-1k.tsv", include_bytes!("../../models/imagenet-1k.tsv")),
    ("efficientnet-lite0.int8.tsv", include_bytes!("../../models/efficientnet-lite0.int8.tsv")),
    ("codebook-default.safetensors", include_bytes!("../../models/codebook-default.safetensors")),
    (
        "codebook-videobert.safetensors",
        include_bytes!("../../models/codebook-videobert.safetensors"),
    ),
    ("captioner-default.safetensors", include_bytes!("../../models/captioner-default.safetensors")),
];

/// The content of a built-in manifest's file.
pub(super) fn file(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, content)| *content)
}
