"""One table of roles: no flag without one, and what follows from it."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.options import ALL, USES, BenchmarkOptions
from utils.args import GROUPS, Config, parse_config
from utils.flag_roles import (
    CHANGEABLE_FLAGS,
    CROSS_VALIDATION_FLAGS,
    DECIDED_FLAGS,
    ELSEWHERE_FLAGS,
    ROLES,
    ineffective_options,
)
from utils.training_record import training_options


def fields_of(*groups: str) -> set[str]:
    return {field.name for group in groups for field in dataclasses.fields(getattr(Config(), group))}


def test_every_flag_of_main_has_a_role_and_every_role_a_flag():
    assert fields_of(*GROUPS) == set(ROLES)


def test_every_flag_of_the_benchmark_has_a_use():
    assert {field.name for field in dataclasses.fields(BenchmarkOptions)} == set(USES)
    assert all(set(use.modes) <= set(ALL) for use in USES.values())
    assert {name for name, use in USES.items() if use.of_main} <= set(ROLES)


def test_what_cross_validation_sets_makes_no_other_run_and_may_change_when_it_is_resumed():
    assert set(DECIDED_FLAGS) < CROSS_VALIDATION_FLAGS < ELSEWHERE_FLAGS < CHANGEABLE_FLAGS
    # What a user may pass on, though it makes no other run.
    assert {
        "splits", "group_by", "test_batches", "warmup", "profile", "processes", "affinity", "num_workers",
        "logger",
    } == ELSEWHERE_FLAGS - CROSS_VALIDATION_FLAGS  # fmt: skip
    # What makes another run of a cross-validation, and no other training.
    assert {
        "ckpt_path", "train_batches", "recipe", "batch_size", "brats", "layout", "fused_norm", "winograd", "compile",
        "compile_mode", "val_batch_size", "tta",
    } == CHANGEABLE_FLAGS - ELSEWHERE_FLAGS  # fmt: skip


def test_network_flags_are_compared_with_the_network():
    assert {name for name, role in ROLES.items() if role.kind == "network"} == fields_of("model")
    assert not fields_of("model") & CHANGEABLE_FLAGS


def test_a_checkpoint_records_what_changes_the_training():
    recorded = training_options(Config(), batch_size=2)
    assert {"seed", "learning_rate", "augment", "amp", "overlap", "batch_size"} <= recorded.keys()
    # Idle here: they need sgd and plateau.
    assert not {"momentum", "lr_patience"} & recorded.keys()
    assert not (CHANGEABLE_FLAGS - {"batch_size"}) & recorded.keys()


@pytest.mark.parametrize("words", ["--brats", "--brats --benchmark", "--brats --benchmark --exec_mode predict"])
def test_brats_shapes_the_network_and_so_has_an_effect(words):
    assert ineffective_options(parse_config(words.split())) == []


def test_brats_of_a_checkpoint_is_in_the_checkpoint():
    [message] = ineffective_options(parse_config(["--brats", "--exec_mode", "predict"]))
    assert message.startswith("--brats has no effect in this run: the checkpoint holds its own")
