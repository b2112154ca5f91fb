"""Writes models.json: what EfficientNet-Lite and MiniLM must give, computed with NumPy alone, in
double precision, from the definitions of the networks and the checkpoints that `cinelex setup
efficientnet-lite1` fetched. Independent of the code it tests, save for the network's definition.

    python3 tests/golden/models.py ~/.cache/cinelex > tests/golden/models.json

Needs NumPy and SciPy. Takes about 20 s.
"""

import collections
import glob
import json
import pickle
import struct
import sys

import numpy as np
from scipy.special import erf


def read_legacy_pth(path):
    """State dictionary of a PyTorch checkpoint of before version 1.6."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if name == "OrderedDict":
                return collections.OrderedDict
            if name == "_rebuild_tensor_v2":
                return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
            return type(name, (), {})

        def persistent_load(self, pid):
            return pid[1].__name__, pid[2]

    with open(path, "rb") as file:
        for _ in range(3):
            Unpickler(file).load()
        state, keys = Unpickler(file).load(), Unpickler(file).load()
        kinds = {key: kind for (kind, key), *_ in state.values()}
        storages = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            dtype = np.dtype("<f4" if kinds[key] == "FloatStorage" else "<i8")
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], size, [s * storages[key].itemsize for s in stride]
        ).astype(np.float64)
        for name, ((_, key), offset, size, stride) in state.items()
    }


def read_safetensors(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(length)), file.read()
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4")
        .reshape(entry["shape"])
        .astype(np.float64)
        for name, entry in header.items()
        if entry["dtype"] == "F32"
    }


def convolve(x, weight, stride, depthwise):
    _, height, width = x.shape
    kernel = weight.shape[-1]
    rows, columns = -(-height // stride), -(-width // stride)
    tall = max((rows - 1) * stride + kernel - height, 0)
    wide = max((columns - 1) * stride + kernel - width, 0)
    x = np.pad(x, ((0, 0), (tall // 2, tall - tall // 2), (wide // 2, wide - wide // 2)))
    out = 0
    for i in range(kernel):
        for j in range(kernel):
            part = x[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            part = part[:, :rows, :columns]
            if depthwise:
                out = out + part * weight[:, 0, i, j][:, None, None]
            else:
                out = out + np.einsum("chw,oc->ohw", part, weight[:, :, i, j], optimize=True)
    return out


def efficientnet_lite(state, picture, strides):
    def norm(x, name):
        gamma, beta, mean, variance = (
            state[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def relu6(x):
        return np.clip(x, 0, 6)

    x = ((picture.astype(np.float64) - 127) / 128).transpose(2, 0, 1)
    x = relu6(norm(convolve(x, state["_conv_stem.weight"], 2, False), "_bn0"))
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("_blocks"))
    for block in range(blocks):
        name, stride, y = f"_blocks.{block}.", strides.get(block, 1), x
        if name + "_expand_conv.weight" in state:
            y = convolve(y, state[name + "_expand_conv.weight"], 1, False)
            y = relu6(norm(y, name + "_bn0"))
        y = convolve(y, state[name + "_depthwise_conv.weight"], stride, True)
        y = relu6(norm(y, name + "_bn1"))
        y = norm(convolve(y, state[name + "_project_conv.weight"], 1, False), name + "_bn2")
        x = y + x if y.shape == x.shape else y
    x = relu6(norm(convolve(x, state["_conv_head.weight"], 1, False), "_bn1"))
    step = x.shape[1] // 3
    size = x.shape[1] - 2 * step
    cells = [
        x[:, i : i + size, j : j + size].mean((1, 2))
        for i in range(0, 3 * step, step)
        for j in range(0, 3 * step, step)
    ]
    features = x.mean((1, 2))
    logits = state["_fc.weight"] @ features + state["_fc.bias"]
    classes = np.exp(logits - logits.max())
    return features, np.stack(cells), classes / classes.sum()


def sentence_bert(state, ids, heads):
    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * state[name + ".weight"] + state[name + ".bias"]

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    x = state["embeddings.word_embeddings.weight"][ids]
    x = x + state["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + state["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in state:
        name = f"encoder.layer.{layer}."
        q, k, v = (
            linear(x, f"{name}attention.self.{part}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = norm(linear(seen, name + "attention.output.dense") + x, name + "attention.output.LayerNorm")
        y = linear(x, name + "intermediate.dense")
        y = linear(y * 0.5 * (1 + erf(y / np.sqrt(2))), name + "output.dense")
        x = norm(y + x, name + "output.LayerNorm")
        layer += 1
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_picture(size):
    """The picture that the tests make in the same way."""
    y, x, c = np.indices((size, size, 3))
    return ((x * 3 + y * (c + 1) + (x // 32 + y // 32) % 2 * 90) % 256).astype(np.uint8)


def main(cache):
    def path(model, file):
        return glob.glob(f"{cache}/models/{model}-*/{file}")[0]

    def rounded(values):
        return [round(float(value), 6) for value in values]

    golden = {"encoders": {}, "sentences": []}
    for model, size, strides in (
        ("efficientnet-lite0", 224, {1: 2, 3: 2, 5: 2, 11: 2}),
        ("efficientnet-lite1", 240, {1: 2, 4: 2, 7: 2, 15: 2}),
    ):
        state = read_legacy_pth(path(model, model + ".pth"))
        features, cells, classes = efficientnet_lite(state, test_picture(size), strides)
        golden["encoders"][model] = {
            "every_40th_feature": rounded(features[::40]),
            "sum_of_each_cell": rounded(cells.sum(1)),
            "best_class": int(classes.argmax()),
            "best_probability": round(float(classes.max()), 6),
        }
    state = read_safetensors(path("minilm", "model.safetensors"))
    # [CLS] a dog runs on the beach [SEP], and [CLS] hello world [SEP]
    for ids in ([101, 1037, 3899, 3216, 2006, 1996, 3509, 102], [101, 7592, 2088, 102]):
        embedding = sentence_bert(state, ids, 12)
        golden["sentences"].append({"ids": ids, "every_24th": rounded(embedding[::24])})
    json.dump(golden, sys.stdout)
    print()


if __name__ == "__main__":
    main(sys.argv[1])
