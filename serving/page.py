"""The page of the service: send a scan, see its mask on it. It holds nothing of the model and asks no other host."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files

from report.markup import Markup, element
from report.page import asset
from report.viewer import PLANES, library_notice, library_source
from utils.scan_names import PICTURE_ENDINGS, VOLUME_ENDINGS


def _own(name: str) -> bytes:
    return (files("serving") / "assets" / name).read_bytes()


ACCEPTED = ",".join((*VOLUME_ENDINGS, ".gz", *PICTURE_ENDINGS, ".dcm", ".zip"))
FORMATS = {
    "": "the scan is", "nii.gz": "NIfTI (.nii.gz)", "nrrd": "NRRD", "mha": "MetaImage (.mha)",
    "dicom-seg": "DICOM-SEG (of DICOM)",
}  # fmt: skip
"""Formats of masks that the page offers; the first is that of the scan."""
ASSETS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "page.css": ("text/css", lambda: asset("page.css").encode()),
    "serve.css": ("text/css", lambda: _own("serve.css")),
    "serve.js": ("text/javascript", lambda: _own("serve.js")),
    "niivue.js": ("text/javascript", lambda: library_source().encode()),
}
"""Name -> type and content, all of what the page loads."""


@functools.cache
def _address(name: str) -> str:
    """Of an asset, with what changes when its content does: browsers keep what they have for a while."""
    return f"/assets/{name}?{hashlib.sha256(ASSETS[name][1]()).hexdigest()[:12]}"


@functools.cache
def page() -> str:
    """The text of the page."""
    head = [
        Markup('<meta charset="utf-8">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "nnunet serve"),
        Markup('<link rel="icon" href="data:,">'),
        *(Markup(f'<link rel="stylesheet" href="{_address(name)}">') for name in ("page.css", "serve.css")),
    ]
    body = [
        element("header", element("h1", "Predict a scan"), element("p", id="model")),
        element("main", _form(), _result()),
        element("footer", element("p", "Not a medical device; not for diagnosis or treatment."), library_notice()),
        *(Markup(f'<script src="{_address(name)}"></script>') for name in ("niivue.js", "serve.js")),
    ]
    content = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{content}\n"


def _form() -> Markup:
    token = element("label", "Token ", element("input", type="password", id="token", autocomplete="off"),
                    id="token-row", hidden=True)  # fmt: skip
    chosen = element("input", type="file", id="files", multiple=True, accept=ACCEPTED)
    formats = [element("option", text, value=key) for key, text in FORMATS.items()]
    return element(
        "form", token,
        element("label", "Scan (NIfTI, NRRD, MetaImage or a picture: one file, or one for each channel; DICOM: a zip) ",
                chosen),
        element("p", id="channels", class_="note"),
        element("label", "Mask as ", element("select", formats, id="format")),
        element("button", "Predict", type="submit", id="predict"),
        element("p", id="state", role="status"),
        id="form",
    )  # fmt: skip


def _result() -> Markup:
    """What is filled in when there is a mask."""
    planes = [element("option", text, value=key) for key, text in PLANES.items()]
    controls = element(
        "div",
        element("label", "Opacity ", element("input", type="range", id="opacity", min=0, max=100, value=50)),
        element("label", "Planes ", element("select", planes, id="planes")),
        element("a", "Download the mask", id="download", download="mask.nii.gz"),
        class_="controls",
    )
    heads = [element("th", text, scope="col") for text in ("structure", "value", "volume in ml")]
    table = element("table", element("thead", element("tr", heads)), element("tbody", id="volumes"))
    return element(
        "section", controls, element("div", element("canvas", id="canvas", tabindex=0, aria_label="scan and mask"),
                                     class_="screen"),
        element("p", id="where", class_="where", role="status"),
        element("p", element("strong", "Doubt: "), element("span", id="doubt")), element("ul", id="remarks"),
        table, id="result", hidden=True,
    )  # fmt: skip
