"""Write docs/reference/commands.md: every command with its flags, as their dataclasses of options say.

python scripts/commands_page.py
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.nnunet import GROUPS, VERBS, Verb
from utils.args import parse
from utils.errors import EXIT_OK, run_cli
from utils.files import write_atomically
from utils.flags import Flag, flag_groups

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/commands.md"
HEAD = """# Commands

<!-- Written by scripts/commands_page.py (make docs); change the dataclasses of options instead. -->

`nnunet VERB` and `python SCRIPT` are the same program. `--help` shows the flags of each. Flags may be written with
underscores or hyphens, switches have an opposite (`--amp`, `--no_amp`), and a flag that has no effect in a run is named
in a warning. Exit status: 0 when all went well, 2 with one message for input that you can fix, 1 where some cases or
runs failed, 130 after Ctrl-C, 143 after SIGTERM (128 and the signal's number).
"""

SCRIPTS_ONLY = (
    Verb(name="", module="scripts.train", options="TrainOptions", help=""),
    Verb(name="", module="scripts.commands_page", options="PageOptions", help=""),
)
"""Scripts without a verb: `nnunet train` takes more, and the page is for those who work on the program."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Write the page of all commands and flags."""

    output: Path = PAGE
    """File to write (default: docs/reference/commands.md)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit status."""
    options = parse(PageOptions, argv, prog="commands_page.py")
    write_atomically(options.output, lambda file: file.write(page().encode()))
    print(f"wrote {options.output}")
    return EXIT_OK


def page() -> str:
    """The whole page."""
    lines = [HEAD, "| verb | script | what it does |", "|---|---|---|"]
    for verbs in GROUPS.values():
        lines += [f"| [`{verb.name}`](#nnunet-{verb.name}) | `{verb.script}` | {verb.help} |" for verb in verbs]
    described: dict[str, str] = {}
    for verb in VERBS.values():
        lines += ["", f"## nnunet {verb.name}", ""]
        if (first := described.setdefault(verb.module, verb.name)) != verb.name:
            lines += [f"`python {verb.script}`: the flags of [nnunet {first}](#nnunet-{first})."]
        else:
            lines += _section(verb)
    for script in SCRIPTS_ONLY:
        lines += ["", f"## {script.script}", "", *_section(script)]
    return "\n".join(lines) + "\n"


def options_of(verb: Verb) -> type:
    """The dataclass of a verb's options."""
    module, _, name = verb.options.rpartition(":")
    return getattr(importlib.import_module(module or verb.module), name)


def _section(verb: Verb) -> list[str]:
    options = options_of(verb)
    lines = [f"`python {verb.script}`"]
    text = _prose(" ".join((options.__doc__ or "").split()))
    groups = flag_groups(options)
    lines += ["", text]
    for group in groups:
        title = _prose(" ".join(group.text.split()))
        lines += ["", *([f"**{title}**", ""] if title != text else []), "| flag | default | meaning |", "|---|---|---|"]
        lines += [_row(flag) for flag in group.flags]
    return lines


def _row(flag: Flag) -> str:
    names = ", ".join(f"`{name}`" for name in flag.names)
    others = " or a path" if flag.is_open else ""
    choices = f" One of {', '.join(f'`{value}`' for value in flag.choices)}{others}." if flag.choices else ""
    default = flag.default if flag.default.startswith("`") else _prose(flag.default)
    return f"| {names} | {default} | {_prose(flag.help)}{choices} |"


def _prose(text: str) -> str:
    """Help text as Markdown: paths with placeholders and flags become code, so that nothing is taken for HTML."""
    text = text.replace("|", "\\|").replace("*", "\\*")
    text = re.sub(r"(?<!`)((?:[\w./-])*<\w+>(?:[\w./<>-]*[\w/>])?)(?!`)", r"`\1`", text)
    text = re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", text)
    return re.sub(r"(?<![\w`<./-])((?:[\w<>-]+/)*[\w<>-]+\.(?:py|json|ckpt|md))(?![\w`])", r"`\1`", text)


if __name__ == "__main__":
    sys.exit(run_cli(main))
