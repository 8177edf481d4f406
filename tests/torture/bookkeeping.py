"""What is written down of ten thousand epochs, without training them."""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MOST_BYTES = 200
"""Of a checkpoint, for an epoch in the history."""
SLOWER = 5.0
"""The last thousand records may take so many times as many seconds of the processor as the first thousand."""
BLOCK = 50
"""Records that are timed together; the median of a thousand's blocks counts, as the garbage collector may come by."""


def keep_books(folder: Path, epochs: int = 10_000) -> tuple[dict[str, Any], list[str]]:
    """Report so many epochs, each with a validation, as a training does; the curves are drawn at its end.

    Returns:
        milliseconds of a record in the first and in the last thousand, bytes and milliseconds of what a checkpoint
        keeps of all of them, seconds of the drawing; and what grew.
    """
    # Here, as the torture's commands are forks that must find nothing of the project imported.
    import torch

    from models.callbacks import EpochReport
    from models.nn_unet import ValidationResult
    from utils.logger import NullLogger

    report = EpochReport(NullLogger(), folder / "progress.png", ("organ", "lesion"))
    module: Any = SimpleNamespace(
        mean_train_loss=lambda: 1.0, reduce_sum=lambda value: value,
        last_validation=ValidationResult(dice=(0.5, 0.5), mean_dice=0.5, loss=1.0),
    )  # fmt: skip
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    trainer: Any = SimpleNamespace(current_epoch=0, max_epochs=epochs, is_global_zero=True, optimizers=[optimizer])
    # Not within the records.
    report._draw_again_s = float("inf")
    marks = []
    with contextlib.redirect_stdout(io.StringIO()):
        for trainer.current_epoch in range(epochs):
            marks += [time.thread_time()] if trainer.current_epoch % BLOCK == 0 else []
            report.on_train_epoch_end(trainer, module)
    marks.append(time.thread_time())
    kept = io.BytesIO()
    torch.save(report.state_dict(), kept)
    saved_s, drawn = time.thread_time(), report.on_fit_end(trainer, module)
    assert drawn is None and (folder / "progress.png").is_file()
    each_ms = [1000 * (end - begin) / BLOCK for begin, end in itertools.pairwise(marks)]
    first_ms, last_ms = (statistics.median(part) for part in (each_ms[: 1000 // BLOCK], each_ms[-1000 // BLOCK :]))
    found = {
        "epochs": epochs, "first_ms": round(first_ms, 4), "last_ms": round(last_ms, 4), "bytes": len(kept.getvalue()),
        "saving_ms": round(1000 * (saved_s - marks[-1]), 1), "drawing_s": round(time.thread_time() - saved_s, 2),
    }  # fmt: skip
    grew = [f"a record: {first_ms:.3f} ms at first, {last_ms:.3f} ms at last"] if last_ms > SLOWER * first_ms else []
    grew += [f"the history: {found['bytes']} bytes"] if found["bytes"] > MOST_BYTES * epochs else []
    return found, grew
