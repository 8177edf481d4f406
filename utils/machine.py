"""What this machine and this installation are: facts for a bug report, each asked for by itself.

A fact that cannot be had is a word ("not installed", "unknown"), never an exception: whoever asks has trouble already.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from utils.program import program_version
from utils.throughput import environment, num_cores

GB = 1e9
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Vector units on which the speed of this program depends, as /proc/cpuinfo names them."""


def package_version(*names: str) -> str:
    """Version of the first of these distributions that is installed, or "not installed"."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def is_importable(name: str) -> bool:
    """Whether a top-level package is there, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def machine_facts(folders: Mapping[str, Path], free_memory_bytes: Callable[[], int]) -> dict[str, str]:
    """Program, system, processor, memory and disk, name -> text.

    Args:
        folders: what a folder is for -> the folder, whose free disk is named; it need not exist yet.
        free_memory_bytes: memory that this process may still take, limits of its container counted.
    """
    facts = environment()
    program = f"nnunet {program_version()}"
    if facts["commit"]:
        program += f", commit {facts['commit']}"
    return {
        "program": f"{program}, in {Path(__file__).resolve().parents[1]}",
        "python": f"{facts['python']}, {platform.platform()}",
        "cpu": f"{facts['cpu']}; {', '.join(cpu_flags()) or 'no AVX2'}",
        "cores": f"{num_cores()} allowed of {os.cpu_count() or 1}",
        "memory": _attempt(lambda: f"{free_memory_bytes() / GB:.1f} GB free for this process, "
                                   f"{_memory_bytes() / GB:.1f} GB in the machine"),
        **{f"disk for {use}": free_disk(folder) for use, folder in folders.items()},
    }  # fmt: skip


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The vector units of `CPU_FLAGS` that this CPU has."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    found = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return tuple(flag for flag in CPU_FLAGS if flag in found)


def cpu_family(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, int] | None:
    """Vendor and family of this CPU, such as ("AuthenticAMD", 25); None where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    vendor, family = facts.get("vendor_id", ""), facts.get("cpu family", "")
    return (vendor, int(family)) if vendor and family.isdecimal() else None


def free_disk(folder: Path) -> str:
    """Free disk where a folder is or would be made."""
    there = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), Path("/"))
    state = "" if there == folder.absolute() else ", not made yet"
    return _attempt(lambda: f"{shutil.disk_usage(there).free / GB:.1f} GB free ({folder.absolute()}{state})")


def gpu_facts() -> list[str]:
    """Name, memory and compute capability of each GPU that torch finds."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{gpu.name}, {gpu.total_memory / GB:.0f} GB, capability {gpu.major}.{gpu.minor}" for gpu in found]


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _attempt(describe: Callable[[], str]) -> str:
    try:
        return describe()
    except (OSError, ValueError, AttributeError) as error:
        return f"unknown ({error})"
