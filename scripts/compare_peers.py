"""Do the same work with this program and with its peers, in turn, and write down the ratios.

python scripts/compare_peers.py --stages step loader_nnunet --peers_python /path/to/peers/bin/python

The peers (nnunetv2, batchgeneratorsv2, MONAI, scikit-image) live in an environment of their own; one that is not
there is reported as absent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers.options import CompareOptions
from utils.args import parse
from utils.errors import run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparisons; returns the exit status (1: a side failed)."""
    options = parse(CompareOptions, argv, prog="compare_peers.py", doc=__doc__)
    # After --help.
    from benchmarks.peers.comparing import compare_all

    return compare_all(options)


if __name__ == "__main__":
    sys.exit(run_cli(main))
