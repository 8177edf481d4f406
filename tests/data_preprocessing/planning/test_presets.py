"""The presets are complete and usable."""

from __future__ import annotations

import re

import pytest

from data_preprocessing.planning.presets import MSD_TASKS


@pytest.mark.parametrize("number", [f"{n:02d}" for n in range(1, 11)])
def test_each_task_has_an_address_a_sum_and_matching_grids(number):
    task = MSD_TASKS[number]
    assert task.folder.startswith(f"Task{number}_")
    assert task.url.startswith("https://") and task.url.endswith(f"/{task.folder}.tar")
    assert re.fullmatch("[0-9a-f]{32}", task.md5)
    assert task.spacing_mm_2d == task.spacing_mm_3d[1:]
    assert len(task.patch_size_3d) == 3 and len(task.patch_size_2d) == 2


def test_ct_tasks_have_statistics_and_mr_tasks_none():
    assert {n for n, task in MSD_TASKS.items() if task.ct} == {"03", "06", "07", "08", "09", "10"}
    assert all(t.ct.lower < t.ct.mean < t.ct.upper for t in MSD_TASKS.values() if t.ct)


def test_checksums_and_folders_differ():
    assert len({task.md5 for task in MSD_TASKS.values()}) == len({task.folder for task in MSD_TASKS.values()}) == 10
