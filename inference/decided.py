"""What a decision says of how new scans are predicted, read before any weights are, and which models a folder holds."""

from __future__ import annotations

import zipfile
from pathlib import Path

from inference.decision import DECISION_FILE, Decision
from inference.fold_folders import fold_folders, holds_checkpoint
from utils.archives import read_member
from utils.errors import UserError, list_problems
from utils.files import from_dict, read_json
from utils.json_text import parse_json

NETWORKS_KIND = "networks of a segmentation model"
"""What `model.json` beside networks for other programs says that it is."""


def scored_settings(model: Path, *, tta: bool | None, overlap: float | None) -> tuple[bool, float]:
    """Flips and overlap for new scans: the user's own, else those that the decision was scored with, else the usual.

    Args:
        model: anything that `--model` means; only a decision says more than the user.
        tta: of the user; None: not said.
        overlap: likewise.
    """
    decision = stored_decision(model)
    chosen_tta = tta if tta is not None else bool(decision and decision.tta)
    decided = None if decision is None else decision.overlap
    chosen_overlap = overlap if overlap is not None else 0.5 if decided is None else decided
    taken = ["--tta"] if tta is None and chosen_tta else []
    taken += [f"--overlap {chosen_overlap:g}"] if overlap is None and chosen_overlap != 0.5 else []
    if taken:
        print(f"{' '.join(taken)}: so {model} was scored ({DECISION_FILE}); flags of yours win")
    return chosen_tta, chosen_overlap


def stored_decision(model: Path) -> Decision | None:
    """The decision in a folder, an exported zip, or a file of that name; None where there is none.

    Raises:
        UserError: it is malformed.
    """
    file = model / DECISION_FILE if model.is_dir() else model
    if file.name == DECISION_FILE and file.is_file():
        return read_json(Decision, file)
    try:
        with zipfile.ZipFile(model) as archive:
            content = parse_json(read_member(archive, DECISION_FILE))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError):
        # Something else, or damaged: whoever loads the model says so.
        return None
    return from_dict(Decision, content, source=f"{DECISION_FILE} in {model}")


def is_set_file(path: Path) -> bool:
    """Whether a path is the file of a set of models (`inference.model_set`): any JSON file but a decision."""
    return path.suffix.lower() == ".json" and path.name != DECISION_FILE and path.is_file()


def refuse_folder_of_models(path: Path, flag: str = "--model") -> None:
    """Name the models that lie in a folder which is none itself.

    Raises:
        UserError: that is so, or it is the file of a set of models.
    """
    if is_set_file(path):
        raise UserError(f"{flag} {path}: a set of models is only predicted with, by itself; give one of its models")
    if path.suffix in (".onnx", ".pt2") or _holds_networks(path):
        raise UserError(
            f"{flag} {path}: networks that export-model wrote for other programs; give what they were made of (a "
            "checkpoint, a folder of folds, or an exported zip), with --engine for another runtime"
        )
    if not path.is_dir() or _is_model(path):
        return
    below = [entry for entry in sorted(path.iterdir()) if _is_model(entry)]
    if below:
        raise list_problems(
            f"{flag} {path} is a folder of models, not one of them; it holds:", [str(entry) for entry in below],
            advice=f"Give one of these as {flag}.",
        )  # fmt: skip


def _holds_networks(path: Path) -> bool:
    """Whether a folder is one of export-model --format onnx, torch-export or aot-inductor."""
    try:
        content = parse_json((path / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == NETWORKS_KIND and not _is_model(path)


def _is_model(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".zip" and path.is_file()
    return (path / DECISION_FILE).is_file() or bool(fold_folders(path)) or holds_checkpoint(path)
