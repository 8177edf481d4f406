"""The README against the program: its flags and defaults exist, its commands parse, its examples are read."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import typing
from pathlib import Path

import pytest

import download
import evaluate
import preprocess
from data_preprocessing.dataset import load_dataset
from scripts import (
    benchmark,
    compare_peers,
    cross_validate,
    export_model,
    find_best_configuration,
    inference,
    init_dataset,
    overlay,
    train,
    verify_dataset,
)
from tests.conftest import PROJECT
from utils.args import GROUPS, Config, parse, parse_config

README = (PROJECT / "README.md").read_text(encoding="utf-8")
OPTIONS = {
    "preprocess.py": preprocess.Options,
    "download.py": download.DownloadOptions,
    "evaluate.py": evaluate.EvaluateConfig,
    "scripts/train.py": train.TrainOptions,
    "scripts/inference.py": inference.InferenceOptions,
    "scripts/cross_validate.py": cross_validate.CrossValidateOptions,
    "scripts/benchmark.py": benchmark.BenchmarkOptions,
    "scripts/compare_peers.py": compare_peers.CompareOptions,
    "scripts/find_best_configuration.py": find_best_configuration.BestOptions,
    "scripts/overlay.py": overlay.OverlayOptions,
    "scripts/export_model.py": export_model.ExportOptions,
    "scripts/init_dataset.py": init_dataset.InitOptions,
    "scripts/verify_dataset.py": verify_dataset.VerifyOptions,
}
FOREIGN = {
    "docker": {"--rm", "--gpus", "--shm-size", "--ulimit"},
    "torchrun": {"--nnodes", "--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint"},
    "slurm": {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--partition"},
    "tensorboard": {"--logdir"},
    "argparse": {"--help"},
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag with all its spellings, and its default as the README writes it (None: free text)."""

    names: frozenset[str]
    default: str | None
    is_switch: bool


def flags_of(*classes: type) -> list[Flag]:
    flags = []
    for cls in classes:
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            if cls is Config and field.name in GROUPS:
                continue
            kind, names = hints[field.name], {f"--{field.name}"}
            if dataclasses.is_dataclass(kind):
                flags += flags_of(kind)
                continue
            for note in getattr(kind, "__metadata__", ()):
                names.update(note.aliases or ())
            flags.append(Flag(frozenset(names), written_default(field), kind is bool))
    return flags


def written_default(field: dataclasses.Field) -> str | None:
    if field.default_factory is not dataclasses.MISSING:
        name = field.default_factory().name
        return f"`/{name}` or `{name}`"
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return None if field.default is None else f"`{field.default}`"


def main_flags() -> list[Flag]:
    hints = typing.get_type_hints(Config)
    return flags_of(Config, *(hints[group] for group in GROUPS))


def section(title: str) -> str:
    """Text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no heading {title!r}"
    return found.group(1)


def flag_table(title: str) -> dict[frozenset[str], str]:
    """Spellings -> default of the table rows under a heading that begin with a flag."""
    rows = re.findall(r"^\| (`-[^|]*) \| ([^|]*) \| [^|]+ \|$", section(title), re.MULTILINE)
    return {frozenset(re.findall(r"`(-[^`]+)`", names)): default for names, default in rows}


def commands() -> list[tuple[str, list[str]]]:
    """(script, words after it) of every command line in code blocks and in inline code."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(python [^`]+)`", README)
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        scripts = [word for word in words if word == "main.py" or word in OPTIONS]
        if scripts:
            found.append((scripts[0], words[words.index(scripts[0]) + 1 :]))
    return found


@pytest.mark.parametrize(
    "title, flags",
    [
        ("All flags of main.py", main_flags()),
        *((f"Flags of {name}", flags_of(OPTIONS[name])) for name in ("preprocess.py", "download.py", "evaluate.py")),
    ],
    ids=["main", "preprocess", "download", "evaluate"],
)
def test_flag_tables_hold_all_flags_with_their_defaults(title, flags):
    table = flag_table(title)
    assert set(table) == {flag.names for flag in flags}
    wrong = {
        tuple(flag.names): table[flag.names]
        for flag in flags
        if flag.default is not None and table[flag.names] != flag.default
    }
    assert not wrong


def test_every_flag_in_the_text_exists():
    known = main_flags() + flags_of(*OPTIONS.values())
    names = set().union(*(flag.names for flag in known), *FOREIGN.values())
    names |= {name.replace("--", "--no_") for flag in known if flag.is_switch for name in flag.names}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) - names == set()


def test_commands_parse():
    found = commands()
    assert {script for script, _ in found} >= {"main.py", "preprocess.py", "download.py", "evaluate.py"}
    for script, words in found:
        if script == "main.py":
            parse_config(words)
            continue
        # What stands after -- goes to main.py.
        cut = words.index("--") if "--" in words else len(words)
        parse(OPTIONS[script], words[:cut], prog=script)
        parse_config(words[cut + 1 :])


def test_scripts_and_make_targets_exist():
    rules = set(re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)(?=[`\n])", README)) <= rules
    for path in re.findall(r"`((?:\w+/)?\w+\.(?:py|ipynb))`", README):
        assert (PROJECT / path).is_file(), path


def test_links_lead_to_headings():
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_dataset_examples_are_read(tmp_path):
    examples = re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for number, example in enumerate(examples, start=80):
        folder = tmp_path / f"Task{number}_Example"
        for path in re.findall(r'"(\./[^"]+)"', example):
            make_empty(folder / path)
        (folder / "dataset.json").write_text(example)
        dataset = load_dataset(tmp_path, str(number))
        assert len(dataset.channels) == len(dataset.training[0].images)
        assert {case.case for case in (*dataset.training, *dataset.test)} <= {"anna", "ben"}
        assert dataset.labels.regions or json.loads(example)["modality"] == {"0": "CT"}


def make_empty(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
