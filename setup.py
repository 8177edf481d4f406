"""The part of the packaging that pyproject.toml cannot say: dependencies come from the requirements files.

requirements.txt stays the one place for versions and the one file that the Makefile and the Dockerfile install. What
stands there below the line `# Tests` runs and checks the tests: pip install -e '.[test]'. Each section of
requirements-extras.txt is an extra of its name: pip install -e '.[dicom]'.
"""

import re
from pathlib import Path

from setuptools import setup

FOLDER = Path(__file__).parent


def _packages(lines: str) -> list[str]:
    names = (line.partition("#")[0].strip() for line in lines.splitlines())
    return [name for name in names if name]


runtime, _, tests = (FOLDER / "requirements.txt").read_text(encoding="utf-8").partition("# Tests\n")
extras_text = (FOLDER / "requirements-extras.txt").read_text(encoding="utf-8")
_, *parts = re.split(r"^# ([a-z0-9]+):.*\n", extras_text, flags=re.MULTILINE)
extras = {name: _packages(lines) for name, lines in zip(parts[::2], parts[1::2])}
setup(install_requires=_packages(runtime), extras_require={"test": _packages(tests), **extras})
