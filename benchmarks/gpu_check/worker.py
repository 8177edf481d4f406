"""The process that works through the cases of one item: python benchmarks/gpu_check/worker.py JOB.

JOB is JSON: `checks` (module:function), `device`, `tiny`, `done` (cases to leave out) and `earlier` (numbers of those).
It says on standard output, a JSON line each: the names of all cases, the beginning of each case, its verdict. What the
libraries print goes to standard error. It ends when its standard input is closed, so that it never outlives the
process that started it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu_check.findings import Outcome
from benchmarks.gpu_check.parent import end_with_parent
from utils.files import json_ready

if TYPE_CHECKING:
    from benchmarks.gpu_check.context import Check, Context

POISONED = 70
"""Exit status where the device answers no more; the cases that are left need a new process."""
MOST_SAID = 300
"""Characters of an error in its line; the record has the traceback."""


def main() -> None:
    """Do the job of the first argument."""
    job = json.loads(sys.argv[1])
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    end_with_parent()
    context = make_context(job)
    module, _, function = job["checks"].rpartition(":")
    cases = list(getattr(importlib.import_module(module), function)(context))
    say(channel, {"cases": [name for name, _ in cases]})
    for name, check in cases:
        if name not in job["done"]:
            say(channel, {"begin": name})
            found = try_case(check, context)
            say(channel, {"case": name, **found})
            context.earlier[name] = found["numbers"]
            if not answers(context):
                os._exit(POISONED)
    # Data pipelines may have threads that would keep the process.
    os._exit(0)


def make_context(job: dict[str, Any]) -> Context:
    """What the job's cases are given, with the device set up as a run does it."""
    import torch

    from benchmarks.gpu_check.context import FULL, TINY, Context

    device = torch.device(job["device"])
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    return Context(device=device, sizes=TINY if job["tiny"] else FULL, earlier=dict(job["earlier"]))


def try_case(check: Check, context: Context) -> dict[str, Any]:
    """Verdict, text, numbers and seconds of a case, whatever happens in it."""
    start_s = time.perf_counter()
    try:
        text, numbers = check(context)
        if context.on_gpu:
            # An error of a kernel shows when it is waited for.
            import torch

            torch.cuda.synchronize()
        verdict = "ok"
    except Outcome as outcome:
        verdict, text, numbers = outcome.verdict, outcome.text, outcome.numbers
    except Exception as error:
        verdict, text = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:MOST_SAID] or 'no message'}"
        numbers = {"traceback": traceback.format_exc().splitlines()[-30:]}
    seconds = time.perf_counter() - start_s
    return {"verdict": verdict, "text": text, "numbers": json_ready(numbers), "seconds": round(seconds, 2)}


def answers(context: Context) -> bool:
    """Whether the device still works; its memory is given back on the way."""
    if not context.on_gpu:
        return True
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return bool(torch.ones(8, device=context.device).sum().item() == 8)
    except Exception:
        return False


def say(channel: TextIO, message: dict[str, Any]) -> None:
    """One line for the process that waits."""
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
