"""Which changes of the code are tried."""

from __future__ import annotations

import argparse

from tests.conftest import PROJECT
from tests.torture.changes import Mutant
from tests.torture.equivalents import EQUIVALENTS
from tests.torture.mutants import Bench, _try_all, choose


def test_changes_are_chosen_and_told_apart_by_the_copy_and_not_by_the_project(tmp_path):
    module, line, change = next(key for key in EQUIVALENTS if key[0].endswith("normalization.py"))
    (tmp_path / module).parent.mkdir()
    (tmp_path / module).write_text(f"{line}\ndef add(a, b):\n    return a + b * 2\n")
    bench = Bench(folder=tmp_path, log=tmp_path / "log.txt")
    # In the project the first line is another one, and its tests would run.
    options, mutant = argparse.Namespace(json=None, seed=1), Mutant(module=module, line=1, change=change, text="")
    assert line not in (PROJECT / module).read_text().splitlines()[0]
    assert _try_all(bench, [mutant], options) == 0 and not bench.times
    chosen = choose(tmp_path, [module], 3, 1)
    assert chosen and all(each.line <= 3 for each in chosen)


def test_the_reasons_are_about_lines_that_there_are():
    for module, line, _ in EQUIVALENTS:
        assert line in map(str.strip, (PROJECT / module).read_text().splitlines()), f"{module}: {line}"
