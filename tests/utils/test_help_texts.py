"""What `--help` shows: no None, defaults in words, an example in every command."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from scripts.nnunet import VERBS, main
from utils.args import parse, parse_config
from utils.config import TaskNumber
from utils.program import called_as
from utils.task_number import checked_task, normalise_task


def help_of(command, *words: str) -> str:
    """Without the frame and the places where lines are broken."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as end:
        command([*words, "--help"])
    assert end.value.code == 0
    return " ".join(said.getvalue().replace("│", " ").split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_shows_an_example_and_no_none(verb):
    text = help_of(main, verb)
    assert re.search(rf"Examples?: nnunet {verb}", text), text
    assert "None" not in text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """What belongs together."""

    size: int = 3
    """Its size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """What the command does,
    in two lines."""

    task: TaskNumber | None = None
    """Which one
    of them."""
    places: tuple[Path, ...] | None = None
    """Where (default: everywhere)."""
    kind: Literal["a", "b"] | None = None
    """Of what kind."""
    quick: Annotated[bool, tyro.conf.arg(aliases=("-q",))] = True
    """Whether it is quick."""
    inner_part: Inner = dataclasses.field(default_factory=Inner)

    def __post_init__(self) -> None:
        normalise_task(self)


def outer(words: list[str], **more) -> Outer:
    return parse(Outer, words, prog="outer.py", doc="python outer.py --kind a\n\npython other.py", **more)


def test_defaults_are_said_once_and_nothing_is_said_of_none():
    text = help_of(outer)
    assert "What the command does, in two lines." in text
    assert "--task NN Which one of them. --places PATH [PATH ...] Where (default: everywhere). --kind {a,b} Of" in text
    assert "Whether it is quick. (default: on)" in text and "inner part options" in text
    assert "Its size. (default: 3)" in text and "Examples: python outer.py --kind a python other.py" in text


def test_a_default_of_a_file_is_shown_in_place_of_the_words():
    text = help_of(lambda words: outer(words, default=Outer(places=(Path("there"),), kind="b")))
    assert "Where (default: everywhere). (default: there)" in text and "Of what kind. (default: b)" in text


def test_values_may_be_left_out_and_given_as_before():
    assert outer([]) == Outer()
    assert outer(["--task", "4", "--places", "x", "y", "--no-quick", "--size", "5"]) == Outer(
        task="04", places=(Path("x"), Path("y")), quick=False, inner_part=Inner(size=5)
    )
    assert outer(["--kind", "None"]).kind is None


def test_examples_are_in_the_words_that_the_user_typed():
    with called_as("nnunet outer"):
        assert "Example: nnunet outer --kind a" in help_of(outer) and "other.py" not in help_of(outer)
    with called_as("nnunet a", ("--kind", "a")):
        assert "Example: nnunet a usage" not in help_of(outer) and "Example: nnunet a" in help_of(outer)


def test_the_flags_of_main_are_grouped_and_brats_stands_beside_the_network():
    text = help_of(lambda words: parse_config(words))
    assert text.index("model options") < text.index("--brats") < text.index("optim options")


@pytest.mark.parametrize("text", ["", "x", "1234", "-4", "4.0"])
def test_what_is_no_task_is_refused(text):
    with pytest.raises(Exception, match="--task must be a number such as 04"):
        checked_task(text)
