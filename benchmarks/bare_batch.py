"""Batch scoring as a script by hand: read all, score, write all; nothing else. Run as a file of its own.

Arguments: `table` or `images`, the file to score, the model, the file to write, and threads.
"""

import json
import resource
import sys
import time

import numpy as np
import onnxruntime as ort
import polars as pl

PASS = 4096
"""Rows in a pass: of 256 to 65,536 the quickest for the images, and as good as any for the table."""


def main(kind: str, source: str, model: str, target: str, threads: int) -> None:
    began = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    if kind == "table":
        frame = pl.read_parquet(source)
        keys = frame["id"]
        x = frame.drop("id").cast(pl.Float32).to_numpy()
    else:
        x = np.fromfile(source, np.uint8)[16:].reshape(-1, 8, 8, 1)
        keys = pl.int_range(1, len(x) + 1, eager=True)
    parts = [session.run(None, {"input": x[start : start + PASS]})[0] for start in range(0, len(x), PASS)]
    logits = np.concatenate(parts)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    best = shares.argmax(axis=1)
    predictions = {
        "key": keys,
        "label": pl.Series([str(index) for index in range(shares.shape[1])]).gather(best),
        "probability": shares.max(axis=1),
        **{f"p_{index}": shares[:, index] for index in range(shares.shape[1])},
    }
    pl.DataFrame(predictions).write_parquet(target)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "peak": peak, "rows": len(x)}))


if __name__ == "__main__":
    main(*sys.argv[1:5], threads=int(sys.argv[5]))
