from __future__ import annotations

import pytest

from tests.conftest import PROJECT
from utils.args import parse_config
from utils.errors import UserError
from utils.files import read_json
from utils.json_text import parse_json
from utils.schema import CaseMeta

DEEP = "[" * 100_000


def test_text_that_is_nested_too_deeply_is_a_fault_of_the_text():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    assert parse_json(b'{"a": [1]}') == {"a": [1]}


def test_users_are_told_of_it(tmp_path):
    (tmp_path / "case.json").write_text(DEEP)
    with pytest.raises(UserError, match=r"case\.json cannot be read as JSON: it is nested too deeply"):
        read_json(CaseMeta, tmp_path / "case.json")


@pytest.mark.parametrize("name", ["options.json", "options.yaml"])
def test_a_config_file_too(tmp_path, name):
    (tmp_path / name).write_text("[" * 3000)
    with pytest.raises(UserError, match="is malformed: it is nested too deeply"):
        parse_config(["--config", str(tmp_path / name)])


def test_files_are_parsed_in_one_way():
    rooms = ("utils", "data_preprocessing", "data_loading", "models", "report", "inference", "training", "serving",
             "cross_validation", "scripts")  # fmt: skip
    own = {"utils/json_text.py", "training/budget_exchange.py"}
    files = [path for room in rooms for path in (PROJECT / room).rglob("*.py")]
    found = {str(path.relative_to(PROJECT)) for path in files if "json.loads(" in path.read_text(encoding="utf-8")}
    assert found == own
