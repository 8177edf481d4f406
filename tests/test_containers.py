"""Dockerfiles and compose.yaml, read as far as they can be without docker: what they copy, install and start exists."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import tomllib

import pytest
import yaml

from scripts import nnunet, serve
from tests.conftest import PROJECT
from tests.dockerfiles import steps
from utils.args import parse
from utils.program import PROJECT as PROGRAM

FILES = sorted(path.name for path in PROJECT.glob("Dockerfile*"))


def requirements() -> dict[str, set[str]]:
    """File -> packages with their versions."""
    named = {}
    for name in ("requirements.txt", "requirements-extras.txt"):
        lines = (PROJECT / name).read_text().splitlines()
        named[name] = {line.partition("#")[0].strip() for line in lines} - {""}
    return named


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_exists_and_is_not_ignored(name):
    ignored = {line.rstrip("/") for line in (PROJECT / ".dockerignore").read_text().splitlines()}
    sources = [word for step, rest in steps(name) if step == "COPY" for word in shlex.split(rest)[:-1]]
    assert {"requirements.txt", "."} <= set(sources)
    for source in sources:
        assert (PROJECT / source).exists() and source not in ignored, source


@pytest.mark.parametrize("name", FILES)
def test_what_is_installed_comes_from_the_requirements(name):
    copied: set[str] = set()
    pinned = set.union(*requirements().values())
    for step, rest in steps(name):
        if step == "COPY":
            copied |= set(shlex.split(rest)[:-1])
        for command in re.findall(r"pip install ([^&|]+)", rest) if step == "RUN" else []:
            words = command.split()
            for flag, value in itertools.pairwise(words):
                if flag == "--requirement" and not value.startswith("/tmp/"):
                    assert value in copied and value in requirements()
            versions = re.findall(r"(?<![\w/])[A-Za-z0-9_.-]+==[0-9][\w.]*", command)
            assert set(versions) <= pinned, "a version is said once, in the requirements"
    texts = [rest for step, rest in steps(name) if step == "RUN"]
    assert any("requirements.txt > /tmp/requirements.txt" in " ".join(text.split()) for text in texts)
    # What it needs is there already, in the versions that were tested.
    assert [text for text in texts if "pip install" in text][-1].endswith("--no-deps --editable .")


def test_what_sed_looks_for_in_the_requirements_is_there():
    """A line that is renamed would be kept or lost without a word."""
    lines = (PROJECT / "requirements.txt").read_text()
    assert all(
        re.search(f"^{start}", lines, re.M) for start in ("nvidia-dali-cuda120==", "torch==", "numpy==", "# Tests$")
    )
    extras = (PROJECT / "requirements-extras.txt").read_text()
    chosen = [rest for name in FILES for step, rest in steps(name) if step == "ARG"]
    compose = yaml.safe_load((PROJECT / "compose.yaml").read_text())["services"]["serve"]["build"]["args"]["EXTRAS"]
    assert len(chosen) == 2
    for words in [*(shlex.split(rest.removeprefix("EXTRAS="))[0] for rest in chosen), compose]:
        for extra in words.split():
            assert re.search(f"^# {extra}:", extras, re.M), extra


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_the_target_serve_starts_the_service_and_the_last_stage_does_not(name):
    stages, current = {}, ""
    for step, rest in steps(name):
        if step == "FROM":
            current = rest.partition(" AS ")[2] or "last"
            stages[current] = []
        stages[current].append((step, rest))
    assert ("ENTRYPOINT", '["nnunet", "serve"]') in stages["serve"]
    assert not any(step == "ENTRYPOINT" for step, _ in stages["last"])
    assert list(stages)[-1] == "last"


@pytest.mark.parametrize("name", FILES)
def test_servers_are_not_root_and_say_how_they_are(name):
    found = steps(name)
    ends = [index for index, (step, _) in enumerate(found) if step == "FROM" and index] + [len(found)]
    server = found[: ends[-2] if len(ends) > 1 else ends[-1]]
    assert ("USER", "1000:1000") in server
    [check] = [rest for step, rest in server if step == "HEALTHCHECK"]
    # What it runs is Python.
    compile(json.loads(check.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")


def test_no_token_or_model_gets_into_an_image_or_a_commit():
    for name in (".dockerignore", ".gitignore"):
        lines = [line.lstrip("/") for line in (PROJECT / name).read_text().splitlines()]
        assert "token" in lines and {"*.zip", "model.zip"} & set(lines) and "repository/" in lines


def test_the_command_of_the_entry_points_exists():
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"nnunet": "scripts.nnunet:main_cli"} and "serve" in nnunet.VERBS and PROGRAM == PROJECT


def test_compose_builds_what_is_here_and_its_commands_parse():
    content = yaml.safe_load((PROJECT / "compose.yaml").read_text())
    assert set(content["services"]) == {"serve", "triton"}
    for service in content["services"].values():
        file = service["build"]["dockerfile"]
        assert file in FILES
        targets = [rest.partition(" AS ")[2] for step, rest in steps(file) if step == "FROM"]
        assert service["build"].get("target", "") in targets
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    service = content["services"]["serve"]
    options = parse(serve.ServeOptions, service["command"], prog="serve.py")
    assert str(options.model) == service["volumes"][0]["target"]
    assert service["ports"] == [f"127.0.0.1:8000:{options.place.port}"]
    assert str(options.place.token_file) == f"/run/secrets/{service['secrets'][0]}"
    assert content["secrets"][service["secrets"][0]] == {"file": "./token"}
