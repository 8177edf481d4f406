"""Flags as data: what a dataclass of options says about each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from scripts import commands_page
from utils.flags import all_flags, flag_groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """A group of its own."""

    scores: tuple[Literal["dice", "hd95"], ...] = ("dice", "hd95")
    """What is
    measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """What the command does."""

    task: str
    """Task number."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=("-v",))] = False
    """Say more."""
    jobs: int | None = None
    """Processes, each on one case (default: one for each core (of those allowed))."""
    where: Path = dataclasses.field(default_factory=lambda: Path("/data"))
    """Where it lies. Default: beside the scans."""
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_a_flag_has_names_default_choices_and_help():
    task, verbose, jobs, where, scores = all_flags(Outer)
    assert (task.names, task.default, task.help) == (("--task",), "required", "Task number.")
    assert (verbose.names, verbose.default, verbose.is_switch) == (("--verbose", "-v"), "off", True)
    assert scores.choices == ("dice", "hd95") and scores.default == "`dice hd95`" and not scores.is_switch
    assert scores.help == "What is measured."
    assert (jobs.default, jobs.help) == ("one for each core (of those allowed)", "Processes, each on one case.")
    assert (where.default, where.help) == ("beside the scans", "Where it lies.")


def test_groups_keep_their_docstrings():
    assert [group.text for group in flag_groups(Outer)] == ["What the command does.", "A group of its own."]


@pytest.mark.parametrize(
    "text, written",
    [
        ("masks <case>.nii.gz or .nii", "masks `<case>.nii.gz` or .nii"),
        ("of <results>/<task>_best, or", "of `<results>/<task>_best`, or"),
        ("patterns with * | more", r"patterns with \* \| more"),
        ("follows --amp, in splits.json of preprocess.py", "follows `--amp`, in `splits.json` of `preprocess.py`"),
        ("in `plan.json` already", "in `plan.json` already"),
    ],
)
def test_help_becomes_markdown_in_which_nothing_is_html(text, written):
    assert commands_page._prose(text) == written


def test_the_page_is_written_where_it_is_asked_for(tmp_path, capsys):
    assert commands_page.main(["--output", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith("# Commands\n")
