"""Whether the parts of this installation work: tried in seconds, and each failure is a finding and no end.

It is for incomplete installations too: until a part is tried, the standard library is enough.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from utils.machine import gpu_facts, is_importable, package_version
from utils.throughput import DALI_PACKAGES

NEEDED = ("numpy", "scipy", "nibabel", "torch", "pytorch-lightning", "monai", "safetensors", "tyro", "cattrs", "PyYAML",
          "rich", "matplotlib", "tensorboard")  # fmt: skip
"""Distributions without which some command does not run; DALI has a name for each version of CUDA."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """What came out of trying one part: `absent` parts can be done without, `broken` ones cannot."""

    name: str
    state: Literal["ok", "absent", "broken"]
    text: str


def default_folders() -> dict[str, Path]:
    """Where the commands read and write unless they are told otherwise."""
    try:
        folders = {"temporary files": Path(tempfile.gettempdir())}
    except OSError:
        # There is none that can be written to; the check of NIfTI files says so.
        folders = {"temporary files": Path("/tmp")}  # noqa: S108 (to say that it is full; nothing is written)
    try:
        from utils.config import default_root
    except ImportError:
        return folders
    return {"data": default_root("data"), "results": default_root("results"), **folders}


def free_memory() -> int:
    """Memory that this process may still take, limits of its container counted."""
    try:
        from utils.limits import free_memory_bytes
    except Exception as error:
        raise ValueError(_reason(error)) from None
    return free_memory_bytes()


def run_checks() -> list[Check]:
    """Everything that is tried, in the order in which it is printed."""
    checks = [installed(), *map(optional, ("dllogger", "triton", "C++ compiler"))]
    checks += [attempt("torch", torch_text), attempt("network on the CPU", lambda: try_network("cpu"))]
    checks += [attempt("DALI on the CPU", lambda: try_dali("cpu"))]
    try:
        gpus = gpu_facts()
    except Exception as error:
        return [*checks, Check(name="GPUs", state="absent", text=_reason(error)), attempt("NIfTI files", try_nifti)]
    checks += [Check(name="GPUs", state="ok" if gpus else "absent", text="; ".join(gpus) or "none that torch finds")]
    if gpus:
        checks += [attempt("network on the GPU", lambda: try_network("cuda"))]
        checks += [attempt("DALI on the GPU", lambda: try_dali("gpu"))]
    return [*checks, attempt("NIfTI files", try_nifti)]


def attempt(name: str, check: Callable[[], str]) -> Check:
    """Try a needed part; whatever goes wrong is the finding, not the end of the report."""
    start_s = time.perf_counter()
    try:
        text = check()
    except Exception as error:
        return Check(name=name, state="broken", text=_reason(error))
    return Check(name=name, state="ok", text=f"{text} ({time.perf_counter() - start_s:.1f} s)")


def installed() -> Check:
    """Versions of the packages, and which of the needed ones are missing."""
    found = {name: package_version(name) for name in NEEDED} | {"DALI": package_version(*DALI_PACKAGES)}
    missing = [name for name, version in found.items() if version == "not installed"]
    if missing:
        text = f"not installed: {', '.join(missing)}; run: pip install -r requirements.txt"
        return Check(name="packages", state="broken", text=text)
    return Check(name="packages", state="ok", text=", ".join(f"{name} {version}" for name, version in found.items()))


def optional(name: str) -> Check:
    """A part that the program can do without, and what is different then."""
    without = {
        "dllogger": "the same log lines are written without it",
        "triton": "--compile and fused kernels on a GPU need it; a CPU does not",
        "C++ compiler": "--compile on a CPU needs one",
    }
    there = any(map(shutil.which, ("c++", "g++", "clang++"))) if "compiler" in name else is_importable(name)
    return Check(name=name, state="ok" if there else "absent", text="there" if there else f"not there; {without[name]}")


def torch_text() -> str:
    """Version of torch, of what it was built for, and the precisions that this machine computes in."""
    import torch

    from utils.runtime import BF16_CAPABILITY, detect_machine

    machine = detect_machine()
    bf16 = [
        *(["CPU"] if machine.cpu_bf16 else []),
        *(["GPU"] if (machine.capability or (0, 0)) >= BF16_CAPABILITY else []),
    ]
    cuda = (
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.version.cuda else "without CUDA"
    )
    return (
        f"{torch.__version__}, {cuda}; bf16 arithmetic: {' and '.join(bf16) or 'none (--amp has no effect on a CPU)'}"
    )


def try_network(device: str) -> str:
    """Forward and backward pass of a tiny network in each precision that a run here may have.

    Raises:
        ArithmeticError: a loss or gradient is not finite.
    """
    import torch

    from utils.runtime import BF16_CAPABILITY, detect_machine

    machine, kinds = detect_machine(), [torch.float32]
    if machine.cpu_bf16 if device == "cpu" else (machine.capability or (0, 0)) >= BF16_CAPABILITY:
        kinds.append(torch.bfloat16)
    if device == "cuda":
        kinds.append(torch.float16)
    for kind in kinds:
        layers = (torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.InstanceNorm3d(8, affine=True),
                  torch.nn.LeakyReLU(0.01), torch.nn.Conv3d(8, 2, 1))  # fmt: skip
        network = torch.nn.Sequential(*layers).to(device)
        image = torch.linspace(-1, 1, 16**3, device=device).reshape(1, 1, 16, 16, 16)
        with torch.autocast(device, dtype=kind, enabled=kind != torch.float32):
            logits = network(image)
        loss = torch.nn.functional.cross_entropy(logits.float(), (image[:, 0] > 0).long())
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        if not all(bool(value.isfinite().all()) for value in (loss, *gradients)):
            raise ArithmeticError(f"loss or gradients in {kind} are not finite")
    return f"forward and backward in {', '.join(str(kind).removeprefix('torch.') for kind in kinds)}"


def try_dali(device: Literal["cpu", "gpu"]) -> str:
    """A pipeline of two operators on a small volume.

    Raises:
        ArithmeticError: it does not give what the operators mean.
    """
    import numpy as np
    from nvidia.dali import fn, pipeline_def

    volume = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4, 1)

    # DALI's types know no None, which is how a pipeline without a GPU is asked for.
    @pipeline_def(batch_size=1, num_threads=1, device_id=0 if device == "gpu" else None)  # type: ignore[arg-type]
    def define():
        data = fn.external_source(source=lambda: [volume], layout="DHWC")
        return fn.flip(data.gpu() if device == "gpu" else data, horizontal=1) * 2.0

    pipeline = define()
    pipeline.build()
    (output,) = pipeline.run()
    result = np.asarray((output.as_cpu() if device == "gpu" else output).at(0))
    if not np.array_equal(result, volume[:, :, ::-1] * 2):
        raise ArithmeticError("a flip and a product give wrong values")
    return "a pipeline of two operators runs"


def try_nifti() -> str:
    """Write a mask and read it again, in the temporary folder.

    Raises:
        ArithmeticError: it does not come back as it was.
    """
    import nibabel
    import numpy as np

    mask, affine = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.diag([0.5, 1.0, 3.0, 1.0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.nii.gz"
        nibabel.save(nibabel.Nifti1Image(mask, affine), path)
        again = nibabel.Nifti1Image.from_filename(path)
        if not (np.array_equal(np.asanyarray(again.dataobj), mask) and np.allclose(again.affine, affine)):
            raise ArithmeticError("a mask does not come back as it was written")
    return "written and read"


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
