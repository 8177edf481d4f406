"""Nonsense for flags and files, chosen by a seed: each ends with a message and a status, never with a traceback."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import download
import evaluate
import main
import preprocess
from scripts import (
    benchmark,
    cross_validate,
    export_model,
    find_best_configuration,
    inference,
    init_dataset,
    overlay,
    train,
    verify_dataset,
)
from tests.tiny_task import make_task
from utils.errors import EXIT_PARTIAL, EXIT_USAGE, run_cli

VALUES = (None, True, -1, 0, 2.5, 1e308, 10**30, "", "x", "../..", "a\nb", "\udc80", "a\0b", [], {}, [[]], [{}],
          {"a": 1}, [1, "a", None], [-1, -1, -1], ["x"], {"": ""})  # fmt: skip
WORDS = ("", "nan", "-inf", "-1", "99999999999999999999", "1e308", "a\nb", "b\udcff", "x" * 300, "(", "1 2", "{case}")
PLACES = ("nowhere/x", "file", "file/x", "folder", "loop", "binary.json", "binary.nii.gz", "empty.zip", "empty.ckpt")

HERE = "{}"
"""A place of PLACES in the words below."""
COMMANDS = {
    "preprocess": (preprocess.main, ["--task", "77", "--data", HERE, "--results", HERE]),
    "preprocess splits": (preprocess.main, ["--task", "77", "--data", "data", "--results", "new", "--splits", HERE]),
    "cascade": (preprocess.main, ["--task", "77", "--results", "results", "--cascade", HERE]),
    "train": (main.main, ["--task", "77", "--data", HERE, "--results", HERE, "--gpus", "0"]),
    "start": (main.main, ["--task", "77", "--data", "results", "--ckpt_path", HERE, "--gpus", "0"]),
    "folds": (main.main, ["--task", "77", "--data", "results", "--splits", HERE, "--gpus", "0", "--fold", "99"]),
    "predict": (main.main, ["--exec_mode", "predict", "--data", "results", "--ckpt_path", HERE, "--gpus", "0"]),
    "config": (main.main, ["--config", HERE]),
    "evaluate": (evaluate.main, ["--preds", HERE, "--lbls", HERE]),
    "labels": (evaluate.main, ["--preds", "labels", "--lbls", "labels", "--labels", HERE]),
    "download": (download.main, ["--task", "04", "--results", "file", "--mirror", HERE]),
    "recipe": (train.main, ["--gpus", "0", "--fold", "0", "--dim", "3", "--data", HERE, "--results", HERE]),
    "inference": (inference.main, ["--input", "scans", "--output", "new", "--model", HERE, "--gpus", "0"]),
    "cross_validate": (cross_validate.main, ["--task", "77", "--data", HERE, "--results", HERE, "--gpus", "0"]),
    "best": (find_best_configuration.main, ["--task", "77", "--data", "results", "--results", HERE]),
    "export": (export_model.main, ["--model", HERE, "--output", "new.zip"]),
    "init": (init_dataset.main, ["--images", HERE, "--labels", HERE, "--output", HERE]),
    "verify": (verify_dataset.main, ["--data", HERE, "--fix", HERE]),
    "overlay": (overlay.main, ["--images", HERE, "--preds", HERE, "--output", HERE]),
    "benchmark": (benchmark.main, ["--mode", "preprocess", "--dim", "3", "--task", "77", "--data", HERE]),
}  # fmt: skip
NUMBERS = {
    "preprocess": (preprocess.main, ["--task", "--nfolds", "--gpu_memory_gb", "--n_jobs", "--group_by"]),
    "main": (main.main, ["--fold", "--nfolds", "--seed", "--learning_rate", "--overlap", "--filters", "--batch_size",
                         "--gpus", "--task", "--factor", "--steps", "--group_by"]),
    "evaluate": (evaluate.main, ["--nsd_tolerance_mm", "--csv"]),
    "download": (download.main, ["--task", "--seed", "--mirror"]),
    "inference": (inference.main, ["--folds", "--memory_gb", "--overlap", "--batch_size", "--dim"]),
    "cross_validate": (cross_validate.main, ["--folds", "--nfolds", "--gpus", "--configurations"]),
    "verify": (verify_dataset.main, ["--tolerance_mm", "--n_jobs", "--task"]),
    "benchmark": (benchmark.main, ["--mode", "--scale", "--scans", "--patch_size"]),
}  # fmt: skip


def status(program, words) -> int:
    try:
        return run_cli(lambda: program([str(word) for word in words]))
    except SystemExit as end:  # how the parser of flags refuses
        return end.code


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A preprocessed task and a few things that are not what they are called."""
    root = tmp_path_factory.mktemp("odd")
    task = make_task(root, num_cases=2)
    assert task.run("--nfolds", "2") == 0
    shutil.copytree(task.folder / "labelsTr", root / "labels")
    shutil.copytree(task.folder / "imagesTs", root / "scans")
    (root / "folder").mkdir()
    (root / "loop").symlink_to("loop")
    for name in ("file", "empty.zip", "empty.ckpt"):
        (root / name).touch()
    for name in ("binary.json", "binary.nii.gz"):
        (root / name).write_bytes(bytes(range(256)))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_places_that_are_something_else(prepared, tmp_path, monkeypatch, name):
    shutil.copytree(prepared, tmp_path / "w", symlinks=True)
    monkeypatch.chdir(tmp_path / "w")
    program, words = COMMANDS[name]
    for place in random.Random(name).sample(PLACES, 4):
        assert status(program, [place if word == HERE else word for word in words]) in (EXIT_PARTIAL, EXIT_USAGE), place


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_values_that_are_none(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    program, flags = NUMBERS[name]
    for flag in flags:
        for word in random.Random(flag).sample(WORDS, 3):
            # Nothing is there to work on, so that a value that is taken ends in a message, too.
            assert status(program, [flag, word]) == EXIT_USAGE, (flag, word)


def places(value, path=()) -> Iterator[tuple]:
    """Paths of all parts of parsed JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def with_nonsense(content, rng: random.Random):
    """Parsed JSON in which one part is gone or something else."""
    path, value = rng.choice(list(places(content))), rng.choice(VALUES)
    if not path:
        return value
    part = content = copy.deepcopy(content)
    for key in path[:-1]:
        part = part[key]
    if rng.random() < 0.25:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "program", "words"),
    [
        ("data/Task77_Tiny/dataset.json", verify_dataset.main, ["--data", "data", "--task", "77", "--n_jobs", "1"]),
        ("results/77_3d/plan.json", main.main, ["--data", "results", "--ckpt_path", "empty.ckpt", "--gpus", "0"]),
        ("results/77_3d/splits.json", main.main, ["--data", "results", "--ckpt_path", "empty.ckpt", "--gpus", "0"]),
        ("results/77_3d/fingerprint.json", preprocess.main,
         ["--task", "77", "--data", "data", "--results", "results", "--n_jobs", "1", "--nfolds", "2"]),
        ("results/77_3d/scan0.json", find_best_configuration.main, ["--task", "77", "--data", "results"]),
    ],
)  # fmt: skip
def test_files_with_a_part_that_is_wrong(prepared, tmp_path, monkeypatch, file, program, words):
    shutil.copytree(prepared, tmp_path / "w", symlinks=True)
    monkeypatch.chdir(tmp_path / "w")
    whole, rng = json.loads(Path(file).read_bytes()), random.Random(0)
    for _ in range(12):
        changed = with_nonsense(whole, rng)
        Path(file).write_text(json.dumps(changed))
        assert status(program, words) in (0, EXIT_PARTIAL, EXIT_USAGE), changed
