"""One change of a small image and label in a DALI pipeline on the CPU, for the tests of single changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from nvidia.dali import fn, pipeline_def

SHAPE = (2, 6, 8, 10)
IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
LABEL = np.random.default_rng(1).choice([0, 3, 7], size=(1, *SHAPE[1:])).astype(np.uint8)


@pipeline_def(enable_conditionals=True, num_threads=1, device_id=None)
def changed(images, labels, change, layout):
    image = fn.external_source(source=images, layout=layout)
    label = fn.external_source(source=labels, layout=layout)
    return change(image, label)


def run(
    change: Callable, *, image: np.ndarray = IMAGE, label: np.ndarray = LABEL, count: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """`count` samples of the same image and label, changed: (count, C, ...), (count, 1, ...)."""
    layout = "CDHW" if image.ndim == 4 else "CHW"
    batches = [[np.stack([array] * count)] for array in (image, label)]
    outputs = changed(*batches, change, layout, batch_size=count, seed=5).run()
    return tuple(np.stack([np.array(sample) for sample in output]) for output in outputs)
