"""The page as a whole: one file that asks for nothing else, and whose policy forbids it to."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from report.layers import Structure
from report.markup import Markup, element, escape
from report.notices import notices
from report.viewer import View, library_notice, library_source, viewer_data, viewer_section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with its heading; `content` is nothing where there is nothing to say."""

    title: str
    content: Markup

    @property
    def anchor(self) -> str:
        """What a link to it points at."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.title.lower())


@functools.cache
def asset(name: str) -> str:
    """A script or style of the page."""
    return (files("report") / "assets" / name).read_text(encoding="utf-8")


def build_page(
    title: str, *, subtitle: str, sections: Sequence[Section],
    views: Sequence[View] = (), structures: Sequence[Structure] = (), viewer_after: str = "",
) -> str:  # fmt: skip
    """The text of the file.

    Args:
        title: of page and window.
        subtitle: the sentence below it.
        sections: those without content are left out.
        views: cases of the viewer; without any, page and file hold nothing of it.
        structures: names, values and, by their order, colours of what the masks show.
        viewer_after: title of the section that the viewer follows; where there is none, the first one.
    """
    shown = [section for section in sections if section.content]
    blocks = [element("section", element("h2", section.title), section.content, id=section.anchor) for section in shown]
    links = [(section.anchor, section.title) for section in shown]
    if views:
        place = next((number for number, each in enumerate(shown, start=1) if each.title == viewer_after), 1)
        blocks.insert(place, viewer_section(views, structures))
        links.insert(place, ("viewer", "Viewer"))
    scripts = [asset("page.js"), *([asset("viewer.js")] if views else [])]
    navigation = element(
        "nav", [element("a", text, href=f"#{anchor}") for anchor, text in links], aria_label="contents"
    )
    body = [
        element("header", element("h1", title), element("p", subtitle)), navigation, notice_list(),
        element("main", blocks),
        element("footer", element("p", "Not a medical device; not for diagnosis or treatment."),
                library_notice() if views else None),
        viewer_data(views, structures), *(Markup(f"<script>{script}</script>") for script in scripts),
    ]  # fmt: skip
    head = [
        Markup('<meta charset="utf-8">'),
        element("meta", http_equiv="Content-Security-Policy",
                content=policy([*scripts, *([library_source()] if views else [])])),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title), Markup(f"<style>{asset('page.css')}</style>"),
    ]  # fmt: skip
    content = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{content}\n"


def notice_list() -> Markup:
    """What the readers of this page's files have noted, above everything else."""
    found = notices()
    items = [element("li", text) for text in found]
    return element("div", element("ul", items), class_="warning", role="note") if items else Markup("")


def policy(scripts: Sequence[str]) -> str:
    """What the browser lets the page do: run these scripts and no other, reach nothing outside the file."""
    digests = (hashlib.sha256(script.encode("utf-8")).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
    )


def section(title: str, *content: object) -> Section:
    """A section of several pieces; empty where all of them are."""
    pieces = [piece for piece in content if piece]
    return Section(title=title, content=Markup("".join(p if isinstance(p, Markup) else escape(p) for p in pieces)))
