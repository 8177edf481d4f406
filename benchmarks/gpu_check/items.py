"""What is checked, in which order, and how much of the time each item may take. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A group of cases that one process works through; `checks` is `module:function` of its cases."""

    name: str
    help: str
    checks: str
    share: float
    """Of the time that is left, beside the shares of the items after it."""
    case_s: float
    """Most seconds of a case, so that one without an end costs no more."""


def _item(name: str, checks: str, share: float, case_s: float, text: str) -> Item:
    return Item(name=name, checks=f"benchmarks.gpu_check.{checks}", share=share, case_s=case_s, help=text)


ITEMS = (
    _item("environment", "surroundings:checks", 1, 60, "versions, memory, a product of matrices, a DALI pipeline"),
    _item(
        "convolutions", "convolutions:checks", 2, 60, "numbers and speed of convolutions in each precision and layout"
    ),
    _item("norms", "norms:checks", 2, 60, "numbers and speed of the fused instance norm"),
    _item("loss", "losses:checks", 1, 60, "value, gradient and memory of the loss"),
    _item("steps", "steps:number_checks", 4, 120, "logits, losses and gradients of training steps, compiled and not"),
    _item("speed", "steps:speed_checks", 6, 180, "time and memory of training steps, compiled and not"),
    _item("loading", "loading:checks", 2, 120, "the data pipelines of all presets, change by change"),
    _item("ddp", "ddp:checks", 2, 180, "gradients and speed of one process for each GPU"),
    _item("graphs", "steps:graph_checks", 4, 300, "training steps as CUDA graphs"),
)
"""In this order: what others rest on comes first, what may spoil most comes last."""
NAMES = tuple(item.name for item in ITEMS)
