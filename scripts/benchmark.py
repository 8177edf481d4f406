"""Measure one stage: speed, memory, waiting for data, share of what the machine can do. Without --data on noise.

python scripts/benchmark.py --mode train --gpus 1 --dim 3 --batch_size 2 --amp
python scripts/benchmark.py --mode growth --gpus 0 --dim 3 --task 04 --filters 8 16 32 --train_batches 60
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.options import BenchmarkOptions, ineffective
from utils.args import parse
from utils.errors import run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in the way that the mode asks for; returns the exit status."""
    options = parse(BenchmarkOptions, argv, prog="benchmark.py", doc=__doc__)
    for message in ineffective(options):
        print(f"warning: {message}", file=sys.stderr)
    # After --help.
    from benchmarks import modes

    return modes.STAGES[options.mode](options)


if __name__ == "__main__":
    sys.exit(run_cli(main))
