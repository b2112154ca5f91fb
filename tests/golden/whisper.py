"""Writes whisper.json: some numbers of Whisper tiny.en under the names of OpenAI's tensors, read with
NumPy alone from the CTranslate2 file that `cinelex setup` fetched. Independent of the code it tests.

    python3 tests/golden/whisper.py ~/.cache/cinelex > tests/golden/whisper.json

Needs NumPy. Takes a second.
"""

import glob
import json
import struct
import sys

import numpy as np


def read(path):
    with open(path, "rb") as file:
        content = file.read()
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


def main():
    (path,) = glob.glob(sys.argv[1] + "/models/whisper-tiny.en-*/model.bin")
    arrays = read(path)
    attention = arrays["encoder/layer_2/self_attention/linear_0/weight"]
    across = arrays["decoder/layer_1/attention/linear_1/weight"]
    across_bias = arrays["decoder/layer_1/attention/linear_1/bias"]
    tensors = {
        "encoder.conv1.weight": arrays["encoder/conv1/weight"],
        "encoder.conv2.bias": arrays["encoder/conv2/bias"],
        "encoder.positional_embedding": arrays["encoder/position_encodings/encodings"],
        "encoder.blocks.2.attn.query.weight": attention[:384],
        "encoder.blocks.2.attn.key.weight": attention[384:768],
        "encoder.blocks.2.attn.value.weight": attention[768:],
        "encoder.ln_post.weight": arrays["encoder/layer_norm/gamma"],
        "decoder.token_embedding.weight": arrays["decoder/embeddings/weight"],
        "decoder.blocks.1.cross_attn.key.weight": across[:384],
        "decoder.blocks.1.cross_attn.value.weight": across[384:],
        "decoder.blocks.1.cross_attn.value.bias": across_bias[384:],
        "decoder.blocks.3.mlp.2.weight": arrays["decoder/layer_3/ffn/linear_1/weight"],
        "decoder.blocks.3.mlp_ln.bias": arrays["decoder/layer_3/ffn/layer_norm/beta"],
    }
    golden = {}
    for name, tensor in tensors.items():
        values = tensor.astype(np.float64).ravel()
        golden[name] = {
            "count": len(values),
            "every_1009th": [round(float(x), 7) for x in values[::1009][:24]],
            "largest": float(np.abs(values).max()),
            "sum_of_squares": float((values**2).sum()),
        }
    json.dump(golden, sys.stdout, indent=1)
    print()


main()
