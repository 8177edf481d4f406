"""The viewer of a page: chosen cases in three planes and 3D, with what each layer means.

NiiVue (BSD-2) draws it. It lies in the page compressed, and the browser unpacks it when the first case is shown.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from report.layers import Structure
from report.markup import Markup, data_block, element, join, json_block
from report.palette import CONFUSED, INVENTED, MISSED, colour, rgb
from report.volumes import PackedCase

LIBRARY = "niivue.umd.js"
LAYERS = {"mask": "mask", "label": "label", "difference": "difference"}
DIFFERENCES = (("missed: only in the label", MISSED), ("invented: only in the mask", INVENTED),
               ("another structure", CONFUSED))  # fmt: skip
PLANES = {"all": "three planes and 3D", "axial": "axial", "coronal": "coronal", "sagittal": "sagittal", "3d": "3D"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A case in the viewer."""

    case: str
    title: str
    """Name and what is special about it."""
    packed: PackedCase
    at_mm: tuple[float, float, float]
    """Where the crosshair begins."""
    picture: str | None = None
    """Data address of a still picture, for print and for browsers without WebGL."""
    channels: tuple[str, ...] = ()
    """Names of the scan's channels, as far as they are known."""

    def channel_names(self) -> list[str]:
        """Of those that the page holds; `channel 2` where nothing says more."""
        held = 1 + len(self.packed.other_channels)
        return [*self.channels[:held], *(f"channel {number + 1}" for number in range(len(self.channels), held))]


@functools.cache
def library_source() -> str:
    """The script of NiiVue as it is shipped."""
    return (files("report") / "vendor" / LIBRARY).read_text(encoding="utf-8")


@functools.cache
def library_base64() -> str:
    """The script of NiiVue as the page holds it: base64 of gzip."""
    return base64.b64encode(gzip.compress(library_source().encode("utf-8"), 6, mtime=0)).decode("ascii")


def library_notice() -> Markup:
    """NiiVue's licence, which goes where its script goes."""
    text = (files("report") / "vendor" / "LICENSE.niivue").read_text(encoding="utf-8")
    return element("details", element("summary", "Licence of the viewer (NiiVue 0.69.0)"), element("pre", text))


def viewer_section(views: Sequence[View], structures: Sequence[Structure]) -> Markup:
    """The section with its controls; empty where there is no case."""
    if not views:
        return Markup("")
    present = [name for name in LAYERS if any(name in view.packed.files for view in views)]
    choices = [element("option", view.title, value=number) for number, view in enumerate(views)]
    planes = [element("option", text, value=key) for key, text in PLANES.items()]
    controls = element(
        "div",
        element("label", "Case ", element("select", choices, id="view-case")),
        _channel_choice(views),
        _choice("layer", "Layer", {name: LAYERS[name] for name in present} | {"none": "scan only"}),
        element("label", "Opacity ", element("input", type="range", id="view-opacity", min=0, max=100, value=50)),
        element("label", "Planes ", element("select", planes, id="view-planes")),
        element("label", element("input", type="checkbox", id="view-cut"), " cut the 3D scan open"),
        class_="controls",
    )  # fmt: skip
    keys = "arrow keys move the crosshair, page up and page down change the slice"
    canvas = element("canvas", id="view-canvas", tabindex=0, aria_label=f"scan and mask; {keys}")
    return element(
        "section", element("h2", "Viewer"), controls, element("div", canvas, class_="screen"),
        element("p", id="view-where", class_="where", role="status"),
        element("p", id="view-reduced", class_="none"), _legends(structures, present), _stills(views),
        id="viewer", class_="viewer",
    )  # fmt: skip


def viewer_data(views: Sequence[View], structures: Sequence[Structure]) -> Markup:
    """What the viewer's script reads: volumes, colours, the library."""
    if not views:
        return Markup("")
    described: list[dict[str, Any]] = [
        {
            "title": view.title, "layers": sorted(view.packed.files), "window": list(view.packed.window),
            "at": list(view.at_mm), "reduced": view.packed.reduced, "channels": view.channel_names(),
            "others": [list(window) for _, window in view.packed.other_channels],
        }
        for view in views
    ]  # fmt: skip
    settings = {
        "views": described,
        "structures": [
            {"name": each.name, "value": each.value, "rgb": rgb(colour(number))}
            for number, each in enumerate(structures)
        ],
        "differences": [
            {"name": name, "value": value, "rgb": rgb(code)} for value, (name, code) in enumerate(DIFFERENCES, start=1)
        ],
    }
    blocks = [data_block(f"volume-{number}-{name}", content)
              for number, view in enumerate(views) for name, content in view.packed.files.items()]  # fmt: skip
    blocks += [data_block(f"volume-{number}-scan-{channel}", content) for number, view in enumerate(views)
               for channel, (content, _) in enumerate(view.packed.other_channels, start=1)]  # fmt: skip
    return join(json_block("view-settings", settings), blocks, data_block("view-library", library_base64()))


def _channel_choice(views: Sequence[View]) -> Markup | None:
    """Which channel is seen; nothing where every scan has one."""
    longest = max((view.channel_names() for view in views), key=len)
    if len(longest) == 1:
        return None
    options = [element("option", name, value=number) for number, name in enumerate(longest)]
    return element("label", "Channel ", element("select", options, id="view-channel"))


def _choice(name: str, title: str, options: dict[str, str]) -> Markup:
    buttons = [
        element("label", element("input", type="radio", name=f"view-{name}", value=key, checked=number == 0), " ", text)
        for number, (key, text) in enumerate(options.items())
    ]
    return element("fieldset", element("legend", title), buttons, id=f"view-{name}")


def _legends(structures: Sequence[Structure], present: Sequence[str]) -> Markup:
    parts = [_legend([(each.name, colour(number)) for number, each in enumerate(structures)], "mask label")]
    if "difference" in present:
        parts.append(_legend(list(DIFFERENCES), "difference"))
    return join(parts)


def _legend(entries: Sequence[tuple[str, str]], layers: str) -> Markup:
    items = [element("li", swatch(code), " ", name) for name, code in entries]
    return element("ul", items, class_="legend", data_layers=layers, hidden=layers == "difference")


def swatch(code: str) -> Markup:
    """A square of a colour; drawn and not styled, so that it is printed too."""
    square = element("rect", width=10, height=10, fill=code)
    return element("svg", square, viewBox="0 0 10 10", class_="swatch", aria_hidden="true")


def _stills(views: Sequence[View]) -> Markup:
    pictures = [
        element("figure", element("img", src=view.picture, alt=f"slices of {view.case}"),
                element("figcaption", view.title))
        for view in views if view.picture
    ]  # fmt: skip
    if not pictures:
        return Markup("")
    return element("div", element("p", "Filled: mask; outlined: label."), pictures, class_="stills")
