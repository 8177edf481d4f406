"""Answer scans with masks over HTTP: a page for people, one address for programs.

python scripts/serve.py model.zip
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from serving.limits import Limits
from utils.args import parse
from utils.errors import EXIT_OK, UserError, run_cli
from utils.extras import optional_import


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Where the service listens."""

    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs a token."""
    port: int = 8000
    """Port; 0 takes a free one."""
    token_file: Path | None = None
    """File with the token that clients must send (or set NNUNET_SERVE_TOKEN); at least 16 characters."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port must lie in 0..65535, got {self.port}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UseOptions:
    """How the network is applied, as in inference.py, whose masks these are."""

    folds: tuple[int, ...] | None = None
    """Folds whose probabilities are averaged (default: all of the model)."""
    gpus: int | None = None
    """Number of GPUs, each with a scan at a time (default: one if there is one; 0: CPU)."""
    amp: bool = False
    """Mixed precision."""
    tta: bool = False
    """Test-time augmentation: average over flips (default: as decision.json was scored, else off)."""
    overlap: float | None = None
    """Overlap of neighbouring windows (default: as decision.json was scored, else 0.5)."""
    dicom_channels: tuple[str, ...] = ()
    """Which series of a DICOM study is which channel, as in inference.py: 't1*' 'flair*', modality:PT or number:4."""
    segment_codes: Path | None = None
    """dataset.json whose "segment_codes" say what the classes are in DICOM-SEG, as in inference.py."""

    def __post_init__(self) -> None:
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UserError(f"--overlap must lie in [0, 1), got {self.overlap}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Answer scans with masks over HTTP: a page for people, POST /api/predict for programs."""

    model: Annotated[Path, tyro.conf.Positional]
    """What inference.py takes as --model: exported zip, checkpoint, folder of checkpoints or folds, or a decision."""
    place: PlaceOptions = dataclasses.field(default_factory=PlaceOptions)
    network: UseOptions = dataclasses.field(default_factory=UseOptions)
    limits: Limits = dataclasses.field(default_factory=Limits)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(ServeOptions, words, prog="serve.py")
    for module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        optional_import(module, extra="serve", purpose="nnunet serve")
    # After --help.
    from inference.run import NetworkUse
    from serving.server import Place, serve
    from serving.worker import Dicom

    own = options.network
    said_tta = any(word.replace("-", "_") in ("__tta", "__no_tta") for word in words)
    use = NetworkUse(
        batch_size=None, gpus=own.gpus, amp=own.amp, compile=False, tta=own.tta if said_tta else None,
        overlap=own.overlap, blend="gaussian",
    )  # fmt: skip
    dicom = Dicom(channels=own.dicom_channels, segment_codes=own.segment_codes)
    serve(options.model, own.folds, use, Place(**vars(options.place)), options.limits, dicom)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))
