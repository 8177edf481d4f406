"""A real Triton server from the wheel nvidia-pytriton, which carries the binary with its Python backend, without a GPU.

The wheel wants numpy 1 and so has a virtual environment of its own, which NNUNET_PYTRITON names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

VARIABLE = "NNUNET_PYTRITON"


def packages_of_pytriton() -> Path:
    """The site-packages of the environment; the test is skipped where there is none."""
    named = os.environ.get(VARIABLE)
    if named is None:
        pytest.skip(f"no Triton server: {VARIABLE} names no virtual environment with nvidia-pytriton")
    found = next(Path(named).glob("lib/python*/site-packages/pytriton/tritonserver"), None)
    assert found is not None, f"{VARIABLE}={named} holds no nvidia-pytriton"
    return found.parents[1]


@contextlib.contextmanager
def triton(repository: Path, folder: Path) -> Iterator[str]:
    """Address (host:port) of a server that serves a repository; its files and its log go to `folder`."""
    packages = packages_of_pytriton()
    server = packages / "pytriton/tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # The backend looks for its stub, which is built for one version of Python, beside its library.
    shutil.copytree(server / "backends/python", folder / "backends/python")
    shutil.copy(server / f"python_backend_stubs/{version}/triton_python_backend_stub", folder / "backends/python")
    http, grpc = _free_port(), _free_port()
    # This interpreter's libpython first: another one of the system would not fit its standard library.
    libraries = [sysconfig.get_config_var("LIBDIR"), str(packages / "nvidia_pytriton.libs")]
    search = [str(PROJECT), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"} | {
        "LD_LIBRARY_PATH": ":".join(libraries), "PYTHONPATH": ":".join(search), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    words = [
        server / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={folder / 'backends'}",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--http-port={http}", f"--grpc-port={grpc}",
        "--allow-metrics=false",
    ]  # fmt: skip
    log = folder / "triton.log"
    with log.open("wb") as output:
        process = subprocess.Popen(words, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{http}/v2/health/ready", process, log)
        yield f"127.0.0.1:{http}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
