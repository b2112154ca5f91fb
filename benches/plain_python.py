"""The usual Python script for the same work: PyAV, swscale, onnxruntime, a batch at a time.

    plain_python.py MODEL.onnx FILM...

Two frames of each 1.5 s, the picture on display in the middle of each half, 224 px, batch 8,
2 threads. Prints how many pictures it encoded. `benches/index-vs-python` runs it.
"""

import sys

import av
import numpy
import onnxruntime

CLIP_SECS, FRAMES_A_CLIP, SIDE, BATCH = 1.5, 2, 224, 8


def sampled(path):
    step = CLIP_SECS / FRAMES_A_CLIP
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        target, shown = step / 2, None
        for frame in container.decode(stream):
            while shown is not None and frame.time > target:
                yield shown.reformat(SIDE, SIDE, "rgb24").to_ndarray()
                target += step
            shown = frame
        if shown is not None:
            yield shown.reformat(SIDE, SIDE, "rgb24").to_ndarray()


def main():
    model, *films = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    encoded, batch = 0, []

    def run():
        nonlocal encoded
        pictures = numpy.stack(batch).transpose(0, 3, 1, 2).astype(numpy.float32)
        session.run(None, {name: (pictures - 127.0) / 128.0})
        encoded += len(batch)
        batch.clear()

    for film in films:
        for picture in sampled(film):
            batch.append(picture)
            if len(batch) == BATCH:
                run()
    if batch:
        run()
    print(encoded)


if __name__ == "__main__":
    main()
