"""One of the processes of ddp.py: python benchmarks/gpu_check/rank.py JOB; the first one prints a line of JSON.

JOB: `task` (gradients or speed), `rank`, `world_size`, `meeting` (a file that all see), `on_gpu`, `tiny`.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.computing import TrainingStep
from benchmarks.gpu_check import steps
from benchmarks.gpu_check.context import FULL, TINY, Context, distance
from benchmarks.gpu_check.parent import end_with_parent
from models.nn_unet import NNUnet

PATIENCE_S = 120
PLAIN = steps.Combination(precision="fp32", way="NCDHW")
FAST = steps.Combination(precision="bf16", way="NDHWC fused norm")


class Loss(nn.Module):
    """Network and loss in one module, whose gradients are averaged over the processes."""

    def __init__(self, module: NNUnet) -> None:
        super().__init__()
        self.network, self.loss = module.network, module.loss

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Scalar."""
        return self.loss(self.network(image), label)


def main() -> None:
    """Do this process's part."""
    job = json.loads(sys.argv[1])
    end_with_parent()
    device = torch.device("cuda", job["rank"]) if job["on_gpu"] else torch.device("cpu")
    if job["on_gpu"]:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if job["on_gpu"] else "gloo", init_method=f"file://{job['meeting']}", rank=job["rank"],
        world_size=job["world_size"], timeout=datetime.timedelta(seconds=PATIENCE_S),
    )  # fmt: skip
    context = Context(device=device, sizes=TINY if job["tiny"] else FULL)
    found = {"gradients": gradients, "speed": speed}[job["task"]](context)
    if job["rank"] == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def gradients(context: Context) -> dict[str, Any]:
    """Distances of sums and gradients from what one process computes, and whether weights stay equal in steps."""
    torch.backends.cudnn.allow_tf32 = False
    rank, count = dist.get_rank(), dist.get_world_size()
    sums = torch.arange(1000.0, device=context.device) * (rank + 1)
    dist.all_reduce(sums)
    step = _step(PLAIN, context, count)
    batch = step.batch
    parameters = list(step.module.network.parameters())
    alone = torch.autograd.grad(Loss(step.module)(batch["image"], batch["label"]), parameters)
    together = _wrap(step.module, context)
    mine = {key: values[rank : rank + 1] for key, values in batch.items()}
    for number in range(3):
        step.optimizer.zero_grad()
        together(mine["image"], mine["label"]).backward()
        if number == 0:
            found = [each.grad.clone() for each in parameters if each.grad is not None]
        step.optimizer.step()
    flat = torch.cat([each.detach().flatten() for each in parameters])
    least, most = flat.clone(), flat.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    right = torch.arange(1000.0) * (count * (count + 1) // 2)
    distances = {"sum": distance(sums, right), "gradient": distance(_flat(found), _flat(alone))}
    return {"distances": distances, "weights_equal": torch.equal(least, most)}


def speed(context: Context) -> dict[str, Any]:
    """Milliseconds of a step of the first process alone, and of all together."""
    torch.backends.cudnn.benchmark = True
    plan = steps.make_plan(context.sizes.patch, context.sizes.filters)
    step = steps.make_step(FAST, plan, context.device, context.sizes)
    alone_ms = 0.0
    if dist.get_rank() == 0:
        alone_ms = context.time_ms(lambda: _train(step, Loss(step.module)))
    dist.barrier()
    together = _wrap(step.module, context)
    together_ms = context.time_ms(lambda: _train(step, together))
    dist.barrier()
    return {"alone_ms": alone_ms, "together_ms": together_ms}


def _train(step: TrainingStep, loss: nn.Module) -> None:
    step.optimizer.zero_grad()
    with steps.autocast(step.runtime):
        value = loss(step.batch["image"], step.batch["label"])
    value.backward()
    step.optimizer.step()


def _step(each: steps.Combination, context: Context, batch_size: int) -> TrainingStep:
    plan = steps.make_plan(context.sizes.small_patch, context.sizes.small_filters, batch_size)
    return steps.make_step(each, plan, context.device, context.sizes)


def _wrap(module: NNUnet, context: Context) -> DistributedDataParallel:
    devices = [context.device] if context.on_gpu else None
    return DistributedDataParallel(Loss(module), device_ids=devices, gradient_as_bucket_view=True)


def _flat(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


if __name__ == "__main__":
    main()
