"""Versions and memory of the machine, and whether the simplest work on its GPU is right."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.context import Checks, Context, distance, judge, random_tensors
from benchmarks.gpu_check.findings import Numbers, Outcome
from models.kernels.instance_norm import has_triton
from utils.machine import package_version
from utils.runtime import BF16_CAPABILITY, detect_machine
from utils.throughput import DALI_PACKAGES, environment

OTHERS_SHARE = 0.1
"""More of the GPU's memory than this in use by other programs, and its speed is theirs as well."""


def checks(context: Context) -> Checks:
    """What there is, then what works."""
    yield "versions", versions
    yield "memory", memory
    yield "product", product
    yield "DALI", dali


def versions(context: Context) -> tuple[str, Numbers]:
    """Whether torch and DALI are made for one generation of CUDA, and what a run here would choose."""
    machine = detect_machine()
    facts = environment(context.device) | {"triton": package_version("triton"), "num_gpus": machine.num_gpus}
    facts |= {"dali": package_version(*DALI_PACKAGES), "nccl": None, "driver": driver()}
    if not context.on_gpu:
        return f"torch {torch.__version__}, no GPU is checked: the CPU stands for it, and speeds mean nothing", facts
    properties = torch.cuda.get_device_properties(context.device)
    facts |= {"capability": list(machine.capability or ()), "multiprocessors": properties.multi_processor_count}
    facts |= {"architectures": torch.cuda.get_arch_list(), "gpu_memory_bytes": properties.total_memory}
    if torch.distributed.is_nccl_available():
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    text = f"{machine.num_gpus} x {facts['gpu']}, torch {torch.__version__}, CUDA {facts['cuda']}, "
    text += f"cuDNN {facts['cudnn']}, Triton {facts['triton']}, DALI {facts['dali']}, driver {facts['driver']}"
    if missing := [name for name, there in (("Triton", has_triton()), ("NCCL", facts["nccl"])) if not there]:
        raise Outcome("failed", f"{' and '.join(missing)} not installed; {text}", facts)
    if (machine.capability or (0, 0)) < BF16_CAPABILITY:
        text += "; no bf16 arithmetic: --amp takes fp16"
    return text, facts


def driver() -> str | None:
    """Version of the GPU's driver, as NVML has it."""
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    return None


def memory(context: Context) -> tuple[str, Numbers]:
    """How much is free, and whether what torch keeps for itself counts as free."""
    context.need_gpu("a GPU's own memory")
    free, total = torch.cuda.mem_get_info(context.device)
    own = torch.cuda.memory_reserved(context.device)
    block = torch.empty(free // 2, dtype=torch.uint8, device=context.device)
    del block
    kept = torch.cuda.mem_get_info(context.device)[0]
    torch.cuda.empty_cache()
    numbers = {"total_bytes": total, "free_bytes": free, "free_bytes_while_torch_keeps_half": kept}
    text = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if total - free - own > OTHERS_SHARE * total:
        text += "; another program uses this GPU, and speeds below are not this program's alone"
    return text, numbers


def product(context: Context) -> tuple[str, Numbers]:
    """Products of matrices in float32 (TF32, as a run has it) and half precision."""
    one, other = random_tensors((256, 256), (256, 256))
    right = one @ other
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    found = {
        name: distance(one.to(context.device, kind) @ other.to(context.device, kind), right)
        for name, kind in kinds.items()
    }
    return judge(found, 0.02)


def dali(context: Context) -> tuple[str, Numbers]:
    """A DALI pipeline of two operators, and the generation of CUDA that DALI is for."""
    from nvidia.dali import fn, pipeline_def

    volume = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4, 1)
    on_gpu = context.on_gpu

    place: Any = 0 if on_gpu else None

    @pipeline_def(batch_size=1, num_threads=1, device_id=place)
    def define():
        data = fn.external_source(source=lambda: [volume], layout="DHWC")
        return fn.flip(data.gpu() if on_gpu else data, horizontal=1) * 2.0

    (output,) = define().run()
    found = np.asarray((output.as_cpu() if on_gpu else output).at(0))
    if not np.array_equal(found, volume[:, :, ::-1] * 2):
        raise Outcome("differs", "a flip and a product give wrong values")
    numbers = {"package": next((name for name in DALI_PACKAGES if _installed(name)), None)}
    generation, cuda = str(numbers["package"])[-3:-1], str(torch.version.cuda).partition(".")[0]
    if on_gpu and generation != cuda:
        raise Outcome("ok", f"it works, though DALI is for CUDA {generation} and torch for CUDA {cuda}", numbers)
    return "a pipeline of two operators is right", numbers


def _installed(name: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(name))
    return False
