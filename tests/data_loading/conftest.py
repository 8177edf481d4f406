"""What every test of loaders leaves behind it: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from data_loading.train_loader import TrainLoader


@pytest.fixture(autouse=True)
def closed_loaders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DALI keeps the threads of a pipeline that only the garbage collector ends, ten of each."""
    loaders, begin = [], TrainLoader.__init__

    def record(self: TrainLoader, *args: Any, **options: Any) -> None:
        loaders.append(self)
        begin(self, *args, **options)

    monkeypatch.setattr(TrainLoader, "__init__", record)
    yield
    for loader in loaders:
        loader.close()
