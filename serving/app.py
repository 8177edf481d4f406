"""The HTTP service: a page, one address that turns scans into masks, and what operators ask for.

| path | what |
|---|---|
| `GET /` | a page to send a scan and see its mask |
| `GET /api/model` | what the model is, its channels and structures |
| `POST /api/predict` | multipart/form-data with a field `scan` for each file; the mask as a file, or JSON |
| `GET /health`, `/ready`, `/metrics` | whether it lives, whether it takes work, counts for Prometheus |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from inference.naming import QUOTED
from serving.guard import Guard
from serving.limits import Limits
from serving.metrics import CONTENT_TYPE, Metrics
from serving.page import ASSETS, page
from serving.receiving import AnswerKind, Wish, predict_upload
from serving.refusals import Refused
from serving.worker import Worker


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Service:
    """What the addresses work with."""

    worker: Worker
    metrics: Metrics
    facts: Mapping[str, Any]
    """What `GET /api/model` says."""

    @property
    def limits(self) -> Limits:
        """What is taken from clients."""
        return self.worker.limits


def make_app(service: Service, token: str | None) -> Guard:
    """The application for a server of ASGI; `token` is what clients must send, None where it is for this machine."""
    # The usual pages of documentation load scripts from other hosts.
    app = FastAPI(title="nnunet serve", docs_url=None, redoc_url=None)
    _add_refusals(app)
    _add_page(app)
    _add_operation(app, service)

    @app.get("/api/model")
    def model() -> dict[str, Any]:
        """What the model is, its channels and structures, and the limits."""
        return {**service.facts, "limits": dataclasses.asdict(service.limits)}

    @app.post("/api/predict")
    async def predict(request: Request, answer: AnswerKind = "mask", format: str | None = None) -> Response:
        """The mask of an uploaded scan; with `answer=json` its record, with `answer=both` the record and the mask."""
        wish = Wish(answer=answer, format=format)
        try:
            response = await predict_upload(request, service.worker, wish, service.metrics.time)
        except Refused as refused:
            service.metrics.count(refused.status)
            # In a list, or quoted, are names that came in a zip, or what stands in a header.
            said = QUOTED.sub("...", refused.message.partition("\n")[0])
            print(f"predict: {refused.status} {said}", flush=True)
            raise
        except Exception:
            service.metrics.count(500)
            raise
        service.metrics.count(200)
        return response

    return Guard(app, token)


def _add_refusals(app: FastAPI) -> None:
    """Every fault is one JSON object with one message."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        headers = None if error.retry_s is None else {"Retry-After": str(error.retry_s)}
        return JSONResponse({"error": error.message}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def wrong(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
        return JSONResponse({"error": faults}, 422)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "an error inside the service; its log has more"}, 500)


def _add_page(app: FastAPI) -> None:
    @app.get("/", response_class=HTMLResponse)
    def start() -> str:
        """The page."""
        return page()

    @app.get("/assets/{name}")
    def asset(name: str) -> Response:
        """Scripts and styles of the page; no name of a client is looked for on the disk."""
        if name not in ASSETS:
            raise HTTPException(404, "there is no such asset")
        kind, content = ASSETS[name]
        return Response(content(), media_type=kind, headers={"Cache-Control": "max-age=3600"})


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/ready")
    def ready() -> dict[str, str]:
        """The model is loaded and work is taken."""
        if service.worker.is_ending:
            raise Refused(503, "the service is ending", retry_s=30)
        return {"status": "ready"}

    @app.get("/metrics")
    def metrics() -> Response:
        """Counts in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)
