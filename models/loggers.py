"""Where training curves go besides the DLLogger lines: TensorBoard, a CSV file, Weights & Biases, MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from utils.config import LoggerName
from utils.errors import UserError
from utils.extras import optional_import

PROJECT = "nnunet"
PACKAGES: Mapping[LoggerName, str] = {"wandb": "wandb", "mlflow": "mlflow"}
"""Those that no requirement brings; each is an extra of its name."""


def require_loggers(names: Sequence[LoggerName]) -> None:
    """Say before any work that a package is missing.

    Raises:
        UserError: naming the package and how to install it.
    """
    for name in names:
        if name in PACKAGES:
            optional_import(PACKAGES[name], extra=name, purpose=f"--logger {name}")


def build_loggers(names: Sequence[LoggerName], folder: Path) -> list[Logger]:
    """Lightning's loggers in their order, all below the results folder unless their own settings say otherwise.

    Raises:
        UserError: a package is missing, or its service refuses this machine.
    """
    require_loggers(names)
    return [MAKERS[name](folder) for name in dict.fromkeys(names)]


def _tensorboard(folder: Path) -> Logger:
    return TensorBoardLogger(folder, name=None, version="tensorboard")


def _csv(folder: Path) -> Logger:
    # Lightning would remove the rows of the training that is continued; they stay, and new ones get a folder beside.
    taken = sum(1 for path in folder.glob("csv*") if path.is_dir())
    return CSVLogger(folder, name="", version=f"csv_{taken + 1}" if taken else "csv")


def _wandb(folder: Path) -> Logger:
    logger = WandbLogger(name=_run_name(folder), project=PROJECT, save_dir=folder)
    try:
        # It asks the service when it is used first; a key that is missing shows now and not after the first epoch.
        _ = logger.experiment
    except Exception as error:
        raise UserError(
            f"--logger wandb: {error}; log in with `wandb login`, or set WANDB_MODE=offline to keep the run in {folder}"
        ) from None
    return logger


def _mlflow(folder: Path) -> Logger:
    place = os.environ.get("MLFLOW_TRACKING_URI")
    if not place:
        place = (folder / "mlruns").absolute().as_uri()
        # MLflow would rather have a data base, which its small package lacks; a folder needs nobody's service.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(experiment_name=PROJECT, run_name=_run_name(folder), tracking_uri=place)
    try:
        _ = logger.experiment
    except Exception as error:
        raise UserError(f"--logger mlflow: {place} cannot be used: {error}; check MLFLOW_TRACKING_URI") from None
    return logger


def _run_name(folder: Path) -> str:
    return folder.absolute().name


MAKERS: Mapping[LoggerName, Callable[[Path], Logger]] = {
    "tensorboard": _tensorboard, "csv": _csv, "wandb": _wandb, "mlflow": _mlflow,
}  # fmt: skip
