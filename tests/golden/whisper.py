"""Writes whisper.json: some numbers of each tensor of Whisper tiny.en and base under OpenAI's names, read with
NumPy alone from the CTranslate2 files that `cinelex setup` fetched. Independent of the code it tests.

    python3 tests/golden/whisper.py ~/.cache/cinelex > tests/golden/whisper.json

Needs NumPy. Takes some seconds.
"""

import glob
import json
import struct
import sys

import numpy as np


def read(content):
    place = 0

    def number(form):
        nonlocal place
        (value,) = struct.unpack_from("<" + form, content, place)
        place += struct.calcsize("<" + form)
        return value

    def text():
        nonlocal place
        length = number("H")
        place += length
        return content[place - length : place - 1].decode()

    assert number("I") == 6 and text() == "WhisperSpec"
    number("I")
    arrays = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}[number("B")]
        length = number("I")
        arrays[name] = np.frombuffer(content[place : place + length], dtype).reshape(shape)
        place += length
    return arrays


def tensors(arrays):
    """All tensors by OpenAI's names: what CTranslate2 has stacked is taken apart again."""
    found = {}

    def linear(name, source, parts=("",)):
        for kind in ("weight", "bias"):
            stacked = arrays[f"{source}/{kind}"]
            for part, array in zip(parts, np.split(stacked, len(parts)), strict=True):
                if kind == "bias" and part == ".key":
                    assert not array.any(), "Whisper's keys have no bias"
                else:
                    found[f"{name}{part}.{kind}"] = array

    def norm(name, source):
        found[f"{name}.weight"] = arrays[f"{source}/gamma"]
        found[f"{name}.bias"] = arrays[f"{source}/beta"]

    for side, last in (("encoder", "ln_post"), ("decoder", "ln")):
        norm(f"{side}.{last}", f"{side}/layer_norm")
        found[f"{side}.positional_embedding"] = arrays[f"{side}/position_encodings/encodings"]
        layer = 0
        while f"{side}/layer_{layer}/ffn/linear_0/weight" in arrays:
            name, source = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
            norm(f"{name}.attn_ln", f"{source}/self_attention/layer_norm")
            linear(f"{name}.attn", f"{source}/self_attention/linear_0", (".query", ".key", ".value"))
            linear(f"{name}.attn.out", f"{source}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{name}.cross_attn_ln", f"{source}/attention/layer_norm")
                linear(f"{name}.cross_attn.query", f"{source}/attention/linear_0")
                linear(f"{name}.cross_attn", f"{source}/attention/linear_1", (".key", ".value"))
                linear(f"{name}.cross_attn.out", f"{source}/attention/linear_2")
            norm(f"{name}.mlp_ln", f"{source}/ffn/layer_norm")
            linear(f"{name}.mlp.0", f"{source}/ffn/linear_0")
            linear(f"{name}.mlp.2", f"{source}/ffn/linear_1")
            layer += 1
    linear("encoder.conv1", "encoder/conv1")
    linear("encoder.conv2", "encoder/conv2")
    found["decoder.token_embedding.weight"] = arrays["decoder/embeddings/weight"]
    return found


def numbers(tensor):
    values = tensor.astype(np.float64).ravel()
    return {
        "count": len(values),
        "every_1009th": [round(float(x), 7) for x in values[::1009][:24]],
        "largest": float(np.abs(values).max()),
        "sum_of_squares": float((values**2).sum()),
    }


def main():
    models = {}
    for model in ("whisper-tiny.en", "whisper-base"):
        files = sorted(glob.glob(f"{sys.argv[1]}/models/{model}-*/model.bin*"))
        parts = [file for file in files if not file.endswith(".json")]
        content = b"".join(open(part, "rb").read() for part in parts)
        models[model] = {name: numbers(tensor) for name, tensor in tensors(read(content)).items()}
    lines = ",\n".join(
        f' "{model}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps(of)}' for name, of in sorted(all.items()))
        + "\n }"
        for model, all in models.items()
    )
    print(f"{{\n{lines}\n}}")


main()
