"""The loss in each precision and order of memory, beside float64 on the CPU; its memory and speed.

Shapes: N batch, K classes or regions, D H W space.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.gpu_check.context import LAYOUTS, TYPES, Checks, Context, distance, judge, random_tensors
from benchmarks.gpu_check.findings import Numbers
from models.loss import SegmentationLoss
from utils.schema import LabelScheme, Region

CLASSES = LabelScheme(names=("background", "a", "b", "c"), values=(0, 1, 2, 3))
IGNORING = LabelScheme(names=("background", "a", "b", "c"), values=(0, 1, 2, 3), ignore_value=9)
REGIONS = LabelScheme(
    names=("background", "a", "b", "c"), values=(0, 1, 2, 3),
    regions=(
        Region(name="all", classes=(1, 2, 3), write_class=1),
        Region(name="core", classes=(2, 3), write_class=2),
        Region(name="middle", classes=(3,), write_class=3),
    ),
)  # fmt: skip
KINDS = {
    "classes": (CLASSES, {}),
    "classes, Dice of each patch": (CLASSES, {"batch_dice": False}),
    "ignored voxels": (IGNORING, {}),
    "regions": (REGIONS, {}),
    "focal": (CLASSES, {"focal": True}),
    "focal, regions": (REGIONS, {"focal": True}),
}
SCALE = 2.0**14
"""Gradients of single voxels are too small for fp16; a run scales its loss, too."""
LEAST_TOLERANCE = 1e-4
TOLERANCE_EPS = 4
LARGE = (1, 16, 160, 320, 320)
"""Logits of a whole CT scan with many classes, as validation has them."""
LARGE_BYTES = 16e9


def checks(context: Context) -> Checks:
    """Numbers of every kind of loss, then what it costs."""
    for name, (labels, options) in KINDS.items():
        yield name, functools.partial(compare, SegmentationLoss(labels, **options), labels)
    yield "time", time_of_patches
    yield "memory", memory


def compare(loss: SegmentationLoss, labels: LabelScheme, context: Context) -> tuple[str, Numbers]:
    """Value and gradients of logits at two resolutions."""
    side, distances, tolerances = context.sizes.side, {}, {}
    shapes = [(2, labels.num_outputs, *(size,) * 3) for size in (side, side // 2)]
    generator = torch.Generator().manual_seed(1)
    most = labels.num_classes + (labels.ignore_index is not None)
    label = torch.randint(0, most, (2, 1, *(side,) * 3), generator=generator).to(torch.uint8)
    for precision, kind in TYPES.items():
        logits = random_tensors(*shapes, dtype=kind)
        right = _run(loss, [each.double() for each in logits], label)
        for layout, order in LAYOUTS.items():
            moved = [each.to(context.device).contiguous(memory_format=order) for each in logits]
            found = _run(loss, moved, label.to(context.device))
            for part, one, other in zip(("value", "gradient", "gradient at half size"), found, right):
                name = f"{part}, {precision} {layout}"
                distances[name] = distance(one, other)
                tolerances[name] = LEAST_TOLERANCE if part == "value" else tolerance(kind)
    return judge(distances, tolerances)


def tolerance(kind: torch.dtype) -> float:
    """Largest distance of a gradient: the loss itself is computed in float32, whatever the logits are."""
    return max(TOLERANCE_EPS * torch.finfo(kind).eps, LEAST_TOLERANCE)


def time_of_patches(context: Context) -> tuple[str, Numbers]:
    """Forward and backward at a training patch's size."""
    side = context.sizes.patch
    label = torch.randint(0, 4, (2, 1, *(side,) * 3), dtype=torch.uint8, device=context.device)
    taken = {}
    for layout, order in LAYOUTS.items():
        logits = torch.randn(2, 4, *(side,) * 3, device=context.device).contiguous(memory_format=order)
        taken[layout] = context.time_ms(functools.partial(_run, SegmentationLoss(CLASSES), [logits], label))
    return f"{taken['NDHWC']:.2f} ms in NDHWC, {taken['NCDHW']:.2f} ms in NCDHW", {"ms": taken}


def memory(context: Context) -> tuple[str, Numbers]:
    """How much the loss of a whole scan takes beside the logits; validation counts on 3 times as much."""
    context.need_gpu("a GPU's own memory")
    context.need_memory(LARGE_BYTES)
    loss = SegmentationLoss(LabelScheme(names=tuple(map(str, range(16))), values=tuple(range(16))))
    logits = torch.randn(LARGE, device=context.device)
    label = torch.randint(0, 16, (1, 1, *LARGE[2:]), dtype=torch.uint8, device=context.device)
    torch.cuda.reset_peak_memory_stats(context.device)
    with torch.inference_mode():
        loss(logits, label)
    share = torch.cuda.max_memory_allocated(context.device) / (logits.numel() * logits.element_size())
    return f"at its peak {share:.2f} times the logits, these included", {"peak_share_of_logits": share}


def _run(loss: SegmentationLoss, logits: list[Tensor], label: Tensor) -> list[Tensor]:
    """Value, and gradients by the logits."""
    leaves = [each.detach().requires_grad_() for each in logits]
    value = loss(leaves, label)
    return [value, *torch.autograd.grad(value * SCALE, leaves)]
