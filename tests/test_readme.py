"""README.md and docs/ against the program: commands parse, flags and paths exist, links resolve, examples are read."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from data_preprocessing.dataset.description_file import load_dataset
from scripts import commands_page, nnunet
from tests.conftest import PROJECT
from utils.args import parse, parse_config
from utils.flags import all_flags

PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
VERBS = {**nnunet.VERBS, **{verb.module: verb for verb in commands_page.SCRIPTS_ONLY}}
FOREIGN = {
    "docker": {"--rm", "--gpus", "--shm-size", "--ulimit", "--file", "--tag", "--build-arg"},
    "curl": {"--fail"},
    "tritonserver": {"--model-repository"},
    "monai.bundle": {"--input_dir", "--output_dir"},
    "torchrun": {"--nnodes", "--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint"},
    "slurm": {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--partition", "--constraint", "--qos"},
    "benchmarks.label_audit": {"--source", "--share"},
    "tensorboard": {"--logdir"},
    "pip": {"--editable"},
    "argparse": {"--help"},
    "nnunet": {"--version"},
    "trtexec": {"--fp16", "--precisionConstraints", "--layerPrecisions"},
    "modelopt": {"--onnx_path", "--output_path", "--op_types_to_exclude"},
    "benchmarks.engines": {"--networks", "--threads", "--seconds"},
    "nnU-Net v2": {"--verify_dataset_integrity", "--c", "--val"},
}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))


@functools.cache
def known_flags():
    return all_flags(*map(commands_page.options_of, VERBS.values()))


@functools.cache
def verb_of_script() -> dict[str, nnunet.Verb]:
    return {verb.script.split()[0]: verb for verb in VERBS.values()}


def is_mention(words: list[str]) -> bool:
    """Whether inline code names a command (or a flag of it) rather than being one to type."""
    switches = {name for flag in known_flags() if flag.is_switch for name in flag.names}
    return not words or (words[-1].startswith("--") and words[-1] not in switches)


def commands(text: str) -> list[tuple[nnunet.Verb, list[str]]]:
    """(verb, words after it) of every command line in code blocks and in inline code."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [(line, False) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [(line, True) for line in re.findall(r"`((?:python|nnunet) [^`]+)`", text)]
    found = []
    for line, inline in lines:
        words = shlex.split(line, comments=True)
        scripts = [word for word in words if word in verb_of_script()]
        if words[:1] == ["nnunet"] and words[1] not in ("VERB", "--help", "--version"):
            verb, rest = VERBS[words[1]], [*VERBS[words[1]].words, *words[2:]]
        elif scripts:
            verb, rest = verb_of_script()[scripts[0]], words[words.index(scripts[0]) + 1 :]
        else:
            continue
        if not inline or not is_mention(rest[len(verb.words) :]):
            found.append((verb, rest))
    return found


def prose(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
@each_page
def test_commands_parse(page):
    for verb, words in commands(prose(page)):
        if verb.module == "main":
            parse_config(words)
            continue
        # What stands after -- goes to main.py.
        cut = words.index("--") if "--" in words else len(words)
        parse(commands_page.options_of(verb), words[:cut], prog=verb.name)
        parse_config(words[cut + 1 :])


def test_the_first_pages_have_commands_to_type():
    for name in ("README.md", "docs/getting-started.md", "docs/tutorial.md"):
        assert len(commands(prose(PROJECT / name))) >= 6


@each_page
def test_every_flag_in_the_text_exists(page):
    names = set().union(*(flag.names for flag in known_flags()), *FOREIGN.values())
    names |= {name.replace("--", "--no_") for flag in known_flags() if flag.is_switch for name in flag.names}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", prose(page))) - names == set()


@each_page
def test_paths_and_make_targets_exist(page):
    rules = set(re.findall(r"^([\w-]+):", prose(PROJECT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)(?=[`\n])", prose(page))) <= rules
    for path in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|ipynb|cff|toml|txt|md))`", prose(page)):
        assert (PROJECT / path).is_file() or (PROJECT / "scripts" / path).is_file(), path
    for verb in re.findall(r"`nnunet ([a-z-]+)(?=[ `])", prose(page)):
        assert verb in nnunet.VERBS or verb.startswith("--"), verb


@each_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_file(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", prose(page), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@each_page
def test_python_examples_compile_and_import_what_exists(page):
    for block in re.findall(r"^```python\n(.*?)^```", prose(page), re.MULTILINE | re.DOTALL):
        tree = ast.parse(block)
        imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if importlib.util.find_spec("tritonclient") is None:
            # Of an extra: what is there to be imported is tested where it is installed.
            imports = [node for node in imports if "tritonclient" not in ast.unparse(node)]
        exec(compile(ast.Module(imports, []), str(page), "exec"), {})


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [PROJECT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)#\s]+\.md)", prose(page))
            waiting += [(page.parent / link).resolve() for link in links]
    assert set(PAGES) <= reached


def test_page_of_commands_is_what_the_program_says():
    written = prose(commands_page.PAGE)
    assert written == commands_page.page(), "run: make docs"
    assert not re.search(r"/home/|/root/|/tmp/", written)


def test_readme_is_short_and_its_picture_small():
    assert len(prose(PROJECT / "README.md").splitlines()) <= 160
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", prose(PROJECT / "README.md"))
    assert (PROJECT / picture).stat().st_size < 150_000


def test_citation_names_the_version_of_the_program():
    import yaml

    from utils.program import program_version

    assert yaml.safe_load(prose(PROJECT / "CITATION.cff"))["version"] == program_version()


def test_dataset_examples_are_read(tmp_path):
    text = prose(PROJECT / "docs/how-to/prepare-data.md")
    examples = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
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
