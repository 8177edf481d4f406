"""Fixtures that every test may ask for."""

from __future__ import annotations

import faulthandler
import locale
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

# Tiny arrays gain nothing from threads, and tests may run beside each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def same_encoding() -> Iterator[None]:
    """Text is read as it was before: a library that a test runs may leave the locale "C", which knows ASCII only."""
    before = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A process that crashes says where: Lightning puts handlers back, and not that of pytest, which it cannot see."""
    if fault_handler_stderr_fd_key in item.config.stash:
        faulthandler.enable(file=item.config.stash[fault_handler_stderr_fd_key])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch finds no CUDA device."""
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans in MSD layout beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("NNUNET_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder} (set NNUNET_TEST_DATA)")
    return folder
