"""The part of the packaging that pyproject.toml cannot say: dependencies come from requirements.txt.

requirements.txt stays the one place for versions and the one file that the Makefile and the Dockerfile install. What
stands there below the line `# Tests` runs and checks the tests: pip install -e '.[test]'.
"""

from pathlib import Path

from setuptools import setup

text = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8")


def _packages(lines: str) -> list[str]:
    names = (line.partition("#")[0].strip() for line in lines.splitlines())
    return [name for name in names if name]


runtime, _, tests = text.partition("# Tests\n")
setup(install_requires=_packages(runtime), extras_require={"test": _packages(tests)})
