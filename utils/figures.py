"""Pictures of a run: progress over epochs, and a prediction on top of its scan."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.axes import triple
from utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#e6550d", "#31a354", "#3182bd", "#c51b8a", "#d9b300", "#17becf", "#8c564b", "#756bb1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """What one epoch showed; Dice (0..1) is NaN for a target that no case has, None means not validated.

    `patch_loss` and `patch_dice` are of one patch of each validation case, in epochs that do not validate whole ones.
    """

    epoch: int
    train_loss: float
    val_loss: float | None
    val_dice: tuple[float, ...]
    mean_dice: float | None
    learning_rate: float
    seconds: float
    patch_loss: float | None = None
    patch_dice: float | None = None


def write_progress(path: Path, history: Sequence[EpochRecord], target_names: Sequence[str]) -> None:
    """Draw losses, Dice, and learning rate with seconds per epoch, one below the other, as a PNG.

    The file is replaced whole: a viewer never sees half a picture.
    """
    _save(progress_figure(history, target_names), path)


def progress_figure(history: Sequence[EpochRecord], target_names: Sequence[str]) -> Figure:
    """What `write_progress` draws; epochs are counted from 1, as on the terminal and on pages."""
    figure = _new_figure(width_inch=8, height_inch=9)
    losses, dice, rate = figure.subplots(3, 1, sharex=True)
    epochs = [record.epoch + 1 for record in history]
    _line(losses, epochs, [r.train_loss for r in history], label="training")
    _line(losses, epochs, [r.val_loss for r in history], label="validation")
    in_patches = any(r.patch_loss is not None for r in history)
    if in_patches:
        _line(losses, epochs, [r.patch_loss for r in history], label="validation, patches", linestyle=":")
    losses.set_ylabel("loss")
    for index, name in enumerate(target_names):
        values = [r.val_dice[index] if index < len(r.val_dice) else None for r in history]
        _line(dice, epochs, values, label=name, color=COLOURS[index % len(COLOURS)], linewidth=1)
    _line(dice, epochs, [r.mean_dice for r in history], label="mean", color="black", linewidth=2)
    if in_patches:
        _line(dice, epochs, [r.patch_dice for r in history], label="mean, patches", color="black", linestyle=":")
    dice.set(ylabel="Dice", ylim=(0, 1))
    _line(rate, epochs, [r.learning_rate for r in history], label="learning rate")
    rate.set(ylabel="learning rate", xlabel="epoch")
    rate.set_ylim(bottom=0)
    seconds = rate.twinx()
    _line(seconds, epochs, [r.seconds for r in history], label="seconds", color="grey")
    seconds.set_ylabel("seconds per epoch")
    seconds.set_ylim(bottom=0)
    seconds.grid(visible=False)
    for axes in (losses, dice):
        axes.legend(loc="best", fontsize="small")
    lines = rate.get_lines() + seconds.get_lines()
    rate.legend(lines, [line.get_label() for line in lines], loc="best", fontsize="small")
    rate.xaxis.get_major_locator().set_params(integer=True)
    return figure


def write_overlay(
    path: Path,
    image: np.ndarray,
    label: np.ndarray | None,
    prediction: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float] = (1, 1, 1),
) -> None:
    """Draw the prediction (filled) and the label (outlined) on three orthogonal slices of a scan, as a PNG.

    Args:
        path: PNG to write, whole or not at all.
        image: (D, H, W) intensities in (S, A, R) order.
        label: (D, H, W) values, 0 is background; None: there is no label.
        prediction: (D, H, W) values, 0 is background.
        spacing_mm: voxel size along D, H, W, so that anatomy keeps its proportions.
    """
    assert image.shape == prediction.shape and (label is None or label.shape == image.shape)
    figure = _new_figure(width_inch=12, height_inch=4.4)
    target = prediction if label is None else label
    cuts = foreground_slices(target if target.any() else prediction)
    masks = [mask for mask in (label, prediction) if mask is not None]
    values = sorted({int(value) for mask in masks for value in np.unique(mask)} - {0})
    window = _window(image)
    for axes, axis, title in zip(figure.subplots(1, 3), range(3), ("axial", "coronal", "sagittal")):
        cut = functools.partial(np.take, indices=cuts[axis], axis=axis)
        outlined = None if label is None else cut(label)
        _draw_slice(axes, cut(image), outlined, cut(prediction), values=values, window=window)
        row_mm, column_mm = (spacing_mm[other] for other in range(3) if other != axis)
        axes.set_aspect(row_mm / column_mm)
        axes.set_title(f"{title}, slice {cuts[axis]}")
    explanation = "filled: prediction" + ("" if label is None else ", outlined: label")
    figure.suptitle(explanation, fontsize="medium")
    _save(figure, path)


def foreground_slices(mask: np.ndarray) -> tuple[int, int, int]:
    """Per axis the slice of a (D, H, W) mask with the most foreground, the middle one where there is none."""
    cuts = []
    for axis in range(3):
        counts = (mask > 0).sum(axis=tuple(a for a in range(3) if a != axis))
        cuts.append(int(counts.argmax()) if counts.any() else mask.shape[axis] // 2)
    return triple(cuts)


def _draw_slice(
    axes: Axes, image: np.ndarray, label: np.ndarray | None, prediction: np.ndarray, *, values: list[int],
    window: tuple[float, float],
) -> None:  # fmt: skip
    # Rows run from inferior (or posterior) upwards, as in (S, A, R) order: the origin is below.
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", interpolation="nearest")
    filled = np.zeros((*prediction.shape, 4))
    for index, value in enumerate(values):
        colour = COLOURS[index % len(COLOURS)]
        filled[prediction == value] = (*_rgb(colour), 0.4)
        inside = None if label is None else label == value
        if inside is not None and inside.any() and min(inside.shape) >= 2:
            # Padded by a background rim, so that a structure at the border has a closed outline too.
            rim = np.pad(inside.astype(float), 1)
            rows, columns = (np.arange(-1, size + 1) for size in inside.shape)
            axes.contour(columns, rows, rim, levels=[0.5], colors=[colour], linewidths=1)
    axes.imshow(filled, origin="lower", interpolation="nearest")
    axes.set_axis_off()


def _window(image: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(image, (0.5, 99.5)).tolist()
    return low, high if high > low else low + 1


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))


def _line(axes: Axes, epochs: list[int], values: list[float | None], **style: Any) -> None:
    """Epochs without a value are skipped, so that points on both sides of them stay joined."""
    points = [(e, v) for e, v in zip(epochs, values) if v is not None and math.isfinite(v)]
    marker = "." if len(points) < 50 else None
    axes.plot([e for e, _ in points], [v for _, v in points], marker=marker, **style)
    axes.grid(visible=True, alpha=0.3)


def _new_figure(*, width_inch: float, height_inch: float) -> Figure:
    """A figure with its own Agg canvas: no window system, no global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inch, height_inch), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
