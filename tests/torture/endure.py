"""A training of thousands of epochs: memory, open files, threads and the seconds of an epoch stay what they are."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.torture.bookkeeping import keep_books
from tests.torture.commands import Limits, run
from tests.torture.stages import STAGES, TASK, prepare

EPOCHS = 10_000
LEAST_LOOKS = 20
MORE_MB = 64.0
"""By so much the memory of the last quarter may lie above that of the second one."""
SLOWER = 3.0
"""The median epoch of the last quarter may take so many times as many seconds of processors as that of the second."""
_LOOK_S = 2.0
_COMMAND = (
    f"--exec_mode train --task {TASK} --dim 3 --fold 0 --accelerator cpu --augment none --depth 2 --filters 2 4 4 "
    f"--batches_per_epoch 1 --num_workers 1 --validate_every 1000 --max_epochs {EPOCHS}"
).split()


def run_endure(
    root: Path, *, seed: int, seconds: float, names: Sequence[str] | None = None, reuse: bool = False
) -> dict[str, Any]:
    """Train for so many seconds, or so many epochs, and compare the quarters of that time.

    Returns:
        what was seen (`looks`: second, epoch, MB, open files, threads), and what grew.
    """
    until, looks, told = time.monotonic() + seconds, [], []
    undisturbed = prepare(root, [STAGES[0].name], once=True, reuse=reuse)[1]
    if undisturbed:
        return {"seed": seed, "undisturbed": undisturbed, "epochs": 0, "looks": [], "faults": []}
    results, begin = root / "work/endure", time.monotonic()
    shutil.rmtree(results, ignore_errors=True)

    def look(pid: int, _: str) -> None:
        now = time.monotonic()
        if looks and now - begin < looks[-1][0] + _LOOK_S:
            return
        if (seen := _of_process(pid)) is not None:
            looks.append([round(now - begin, 1), _epochs(results), *seen])
        if now > until and not told:
            told.append(pid)
            os.kill(pid, signal.SIGTERM)

    words = [*_COMMAND, "--prepared", str(root / "work/prepared"), "--results", str(results), "--seed", str(seed)]
    outcome = run("main", words, folder=root, limits=Limits(seconds=10 * seconds + 600), meanwhile=look)
    faults = []
    if outcome.status not in (0, 128 + signal.SIGTERM) or outcome.has_traceback:
        faults.append(f"ends with {outcome.status}: {outcome.last_words}")
    epochs = _epochs(results)
    thinned = looks[:: max(1, len(looks) // 40)]
    books, grew = keep_books(root)
    faults += what_grew(looks) + grew
    return {
        "seed": seed, "undisturbed": [], "epochs": epochs, "looks": thinned, "books": {"all": books}, "faults": faults
    }  # fmt: skip


def what_grew(looks: Sequence[Sequence[float]]) -> list[str]:
    """In what the last quarter of the looks differs from the second one; the first one is that of beginning."""
    trained = [each for each in looks if each[1] > 0]
    if len(trained) < LEAST_LOOKS:
        return [f"too short: looked at {len(trained)} times, {LEAST_LOOKS} are needed"]
    quarter = len(trained) // 4
    second, last = trained[quarter : 2 * quarter], trained[-quarter:]
    found = []
    for name, column, allowed in (("MB of memory", 2, MORE_MB), ("open files", 3, 2), ("threads", 4, 2)):
        before, after = (statistics.median(each[column] for each in part) for part in (second, last))
        if after > before + allowed:
            found.append(f"{name}: {before:g} in the second quarter, {after:g} in the last one")
    # Of an epoch; `ran` counts seconds of processors, so that others on the machine do not matter.
    before_s, after_s = ((part[-1][5] - part[0][5]) / max(1, part[-1][1] - part[0][1]) for part in (second, last))
    if after_s > SLOWER * before_s:
        found.append(f"seconds of an epoch: {before_s:.3f} in the second quarter, {after_s:.3f} in the last one")
    return found


def _epochs(results: Path) -> int:
    """Epochs that are done, by the lines of the log."""
    log = results / "logs.json"
    return log.read_bytes().count(b'"epoch_s":') if log.exists() else 0


def _of_process(pid: int) -> tuple[float, int, int, float] | None:
    """MB in memory, open files, threads, seconds of processors; None where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        counts = (len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task"))
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        if not pages:
            # It ends, and its memory is gone before it is.
            return None
        return round(pages * 4096 / 2**20, 1), *counts, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None
