"""What computes networks in place of torch: `--engine onnxruntime` and `--engine openvino`, on the CPU.

The model stays what it is, a checkpoint, folder or zip; its networks are converted when they are first used.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from inference.configuration import ConfigurationModel
from inference.engines.agreement import check_runtime
from inference.engines.cache import converted_network, plain_network
from inference.engines.runtimes import OnnxRuntimeNetwork, OpenVinoNetwork
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.extras import optional_import
from utils.runtime import Runtime

EngineName = Literal["auto", "torch", "onnxruntime", "openvino"]
TORCH = "torch"
PACKAGES = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}
"""What each engine imports."""
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """A runtime other than torch, on the CPU.

    Attributes:
        name: onnxruntime or openvino.
        threads: those that it computes with.
        amp: bf16, or None for float32.
    """

    name: str
    threads: int
    amp: torch.dtype | None = None

    def describe(self) -> str:
        """Name, version and threads."""
        return f"{self.name} {version(self.name)} with {self.threads} thread{'s' if self.threads != 1 else ''}"

    def networks(self, configuration: ConfigurationModel) -> tuple[nn.Module, ...]:
        """One network per fold; each has shown that it computes what torch computes.

        Raises:
            UserError: the weights do not fit the plan, or a network computes something else here.
        """
        made = []
        for fold in configuration.folds:
            with converted_network(configuration, fold) as converted:
                made.append(self.run(converted.path))
                # bf16 differs by more than rounding; fp32 of the same file has no such excuse.
                if not converted.is_checked(self.name):
                    exact = dataclasses.replace(self, amp=None).run(converted.path) if self.amp else made[-1]
                    network, name = plain_network(configuration, fold), f"{fold.name} by {self.describe()}"
                    converted.note(self.name, check_runtime(network, exact, configuration.plan, name=name))
        return tuple(made)

    def run(self, path: Path) -> nn.Module:
        """The network of an ONNX file, in this runtime."""
        if self.name == "onnxruntime":
            return OnnxRuntimeNetwork(path, self.threads)
        return OpenVinoNetwork(path, self.threads, bf16=self.amp is not None)


def without_gpu(name: str, hardware: HardwareConfig) -> HardwareConfig:
    """The hardware that an engine computes on: the CPU, unless the engine is torch.

    Raises:
        UserError: there is no engine of this name, or a GPU is asked for.
    """
    if name not in get_args(EngineName):
        raise UserError(f"engine must be one of {', '.join(get_args(EngineName))}, got {name!r}")
    if name in ("auto", TORCH):
        return hardware
    if hardware.gpus:
        raise UserError(
            f"--engine {name} computes on the CPU, and --gpus {hardware.gpus} asks for GPUs; leave one of them out "
            "(export-model --format onnx writes what TensorRT takes)"
        )
    if hardware.gpus is None and hardware.accelerator != "cpu" and torch.cuda.is_available():
        print(f"note: --engine {name} computes on the CPU; this machine's GPU stays idle", file=sys.stderr)
    return dataclasses.replace(hardware, gpus=0, compile=False)


def choose_engine(name: str, hardware: HardwareConfig, runtime: Runtime, amp: torch.dtype | None) -> Engine | None:
    """The engine of a run; None is torch, which `auto` means everywhere.

    It computes with as many threads as torch would. Flags that do nothing with it are named in a warning.

    Args:
        name: what the user wants.
        hardware: what the user wants of torch.
        runtime: what became of that.
        amp: the type that torch would compute in under autocast.

    Raises:
        UserError: a package is missing.
    """
    if name in ("auto", TORCH):
        return None
    assert not runtime.use_gpu, "engines compute on the CPU"
    for package in PACKAGES[name]:
        optional_import(package, extra=EXTRAS[name], purpose=f"--engine {name}")
    if hardware.compile:
        print(f"warning: --compile has no effect with --engine {name}", file=sys.stderr)
    if amp is not None and name == "onnxruntime":
        print("warning: --amp has no effect with --engine onnxruntime, which computes in fp32", file=sys.stderr)
        amp = None
    return Engine(name=name, threads=torch.get_num_threads(), amp=amp)
