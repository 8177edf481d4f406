"""Check the GPU of this machine against its CPU, item by item: numbers, speed, memory; one line of verdict each.

python scripts/gpu_check.py
python scripts/gpu_check.py --items convolutions norms --time_s 120 --json norms.json
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_check.findings import Finding, is_bad, summary
from benchmarks.gpu_check.items import ITEMS, NAMES
from utils.args import parse
from utils.config import default_root
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, run_cli

WIDTH = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuCheckOptions:
    """Compare this machine's GPU with its CPU, item by item, before the first training: numbers, speed and memory.
    Example: nnunet gpu-check --time_s 600 --json gpu.json. Exit status 1: something differs or failed; what is slower,
    skipped or was not run for want of time is listed and leaves it at 0."""

    items: tuple[str, ...] = NAMES
    """Items to check, such as --items norms loading."""
    time_s: float = 600.0
    """Seconds for everything; each item has a share of them, and what does not fit is listed as not run."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What is compared with the CPU. auto: the first GPU, or without one the CPU itself, which only shows that the
    checks run."""
    quick: bool = False
    """Little work also on a GPU, to see that everything runs; the speeds mean nothing then."""
    json: Path = dataclasses.field(default_factory=lambda: default_root("results") / "gpu_check.json")
    """File for the record with all numbers, written anew after each case."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.items if name not in NAMES]:
            raise UserError(f"--items knows no {', '.join(unknown)}; it knows {', '.join(NAMES)}")
        if not self.items:
            raise UserError(f"--items needs at least one of {', '.join(NAMES)}")
        if not self.time_s > 0:
            raise UserError(f"--time_s must be positive, got {self.time_s}")


def main(argv: Sequence[str] | None = None) -> int:
    """Check what was asked for; returns the exit status."""
    options = parse(GpuCheckOptions, argv, prog="gpu_check.py")
    # After --help.
    from benchmarks.gpu_check.record import Record
    from benchmarks.gpu_check.runner import run_items
    from utils.runs import prepare_folder

    device = choose_device(options)
    prepare_folder(options.json.parent, "--json")
    record = Record(options.json, options=options, device=device)
    items = [item for item in ITEMS if item.name in options.items]
    job = {"device": device, "tiny": device == "cpu" or options.quick}
    printed = ""
    for finding in run_items(items, job, time_s=options.time_s):
        printed = show(finding, printed)
        record.add(finding)
    record.finish()
    print(f"\n{summary(record.findings)}\nall numbers: {options.json}")
    return EXIT_PARTIAL if is_bad(record.findings) else EXIT_OK


def choose_device(options: GpuCheckOptions) -> Literal["cpu", "cuda"]:
    """The device that is compared with the CPU.

    Raises:
        UserError: a GPU was asked for, and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if options.accelerator == "gpu" and not there:
        raise UserError(
            "--accelerator gpu: torch finds no GPU on this machine; check the driver and CUDA_VISIBLE_DEVICES, or "
            "leave it out to try the checks on the CPU"
        )
    if options.accelerator == "auto" and not there:
        print("no GPU here: the CPU is compared with itself, which says nothing of any GPU")
    return "cuda" if there and options.accelerator != "cpu" else "cpu"


def show(finding: Finding, printed: str) -> str:
    """Print a finding, under its item's title where `printed` was another item; returns the item's name."""
    if finding.item != printed:
        print(finding.item)
    print(finding.line(WIDTH), flush=True)
    return finding.item


if __name__ == "__main__":
    sys.exit(run_cli(main))
