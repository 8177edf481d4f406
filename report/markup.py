"""Pieces of HTML: text that is escaped unless it says that it is markup."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

VOID = {"br", "img", "input", "meta", "hr", "col"}
"""Elements without content, which have no end tag."""


class Markup(str):
    """Text that is HTML already; everything else is escaped where it enters an element."""

    __slots__ = ()


Content = str | int | float | None | Iterable["Content"]


def escape(text: object) -> str:
    """Text as it may stand in an element or between quotes; bytes of file names that are no UTF-8 become codes."""
    shown = str(text).encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
    return html.escape(shown, quote=True)


def render(content: Content) -> str:
    """Markup as it is, text escaped, lists one after the other, None as nothing."""
    if content is None:
        return ""
    if isinstance(content, Markup):
        return str(content)
    if isinstance(content, (str, int, float)):
        return escape(content)
    return "".join(render(part) for part in content)


def element(name: str, /, *content: Content, **attributes: Any) -> Markup:
    """An element; `class_` and `data_case` become `class` and `data-case`; None and False leave an attribute out."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(value)}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in VOID else f"{start}{render(content)}</{name}>")


def join(*content: Content) -> Markup:
    """Several pieces as one."""
    return Markup(render(content))


def json_block(identifier: str, value: Any) -> Markup:
    """Data for the page's script; no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')


def data_block(identifier: str, base64: str) -> Markup:
    """Bytes for the page's script, as base64, which has no signs of HTML."""
    return Markup(f'<script type="text/plain" id="{escape(identifier)}">{base64}</script>')
