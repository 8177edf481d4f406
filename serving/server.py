"""The service as a process: it loads the model, listens, and ends when it is told to."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from inference.predictor import Predictor
from inference.run import NetworkUse, load_predictors
from serving.answers import structures
from serving.app import Service, make_app
from serving.connections import TimedProtocol
from serving.guard import is_loopback
from serving.limits import Limits
from serving.metrics import Metrics
from serving.worker import Dicom, Worker
from utils.errors import UserError

TOKEN_VARIABLE = "NNUNET_SERVE_TOKEN"  # noqa: S105 (the name of a variable)
LEAST_TOKEN = 16
GRACE_S = 30
"""What a scan under way may still take when the service is told to end."""
MOST_CONNECTIONS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where the service listens, and the token that clients need."""

    host: str
    port: int
    token_file: Path | None

    def read_token(self) -> str | None:
        """The token; None where none is needed.

        Raises:
            UserError: it is missing, too short or cannot be read.
        """
        token = os.environ.get(TOKEN_VARIABLE)
        if self.token_file is not None:
            try:
                token = self.token_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--token_file {self.token_file} cannot be read: {error}") from None
        token = (token or "").strip() or None
        if token is None and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host} can be reached from other machines, which needs a token: give --token_file, or "
                f"set {TOKEN_VARIABLE}; whoever knows the token may send scans. Put a proxy with TLS in front of it"
            )
        if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
            raise UserError(
                f"a token has at least {LEAST_TOKEN} printable ASCII characters; this makes one: openssl rand -hex 32"
            )
        return token

    def bind(self) -> socket.socket:
        """A socket that listens; port 0 takes a free one.

        Raises:
            UserError: the port is taken, or the host is not this machine's.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot listen on {self.host} port {self.port}: {reason}; choose another --port") from None


class Server(uvicorn.Server):
    """Takes no more scans from the moment it is told to end; uvicorn then waits for those under way."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order."""
        self.worker.end()
        await super().shutdown(sockets)


def serve(
    model: Path, folds: Sequence[int] | None, use: NetworkUse, place: Place, limits: Limits, dicom: Dicom
) -> None:  # fmt: skip
    """Answer requests until a signal ends it.

    Raises:
        UserError: no such model, a place that cannot be listened at, codes that cannot be used, or no token.
    """
    token, listening = place.read_token(), place.bind()
    predictors = load_predictors(model, folds, use)
    server = make_server(predictors, limits, token, dicom)
    facts = model_facts(predictors[0])
    for text in server.worker.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(f"model: {facts['dataset']}, {facts['model']}")
    print(f"serving at {address(listening)} ({'with' if token else 'without'} a token); Ctrl-C ends it", flush=True)
    try:
        server.run(sockets=[listening])
    finally:
        server.worker.close()
        listening.close()


def make_server(predictors: Sequence[Predictor], limits: Limits, token: str | None, dicom: Dicom) -> Server:
    """What answers on a socket that is given to its `run`; its worker is the caller's to close after that."""
    worker = Worker(predictors, limits, dicom)
    service = Service(worker=worker, metrics=Metrics(worker), facts=model_facts(predictors[0]))
    config = uvicorn.Config(
        make_app(service, token), http=TimedProtocol, log_level="warning", access_log=False, lifespan="off", ws="none",
        server_header=False, limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=GRACE_S,
    )  # fmt: skip
    return Server(config, worker)


def address(listening: socket.socket) -> str:
    """Where a browser finds what listens."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def model_facts(predictor: Predictor) -> dict[str, Any]:
    """What clients are told of a model."""
    folds = [", ".join(each.ensemble.names) for each in predictor.configurations]
    return {
        "dataset": predictor.plan.dataset, "model": "; ".join(folds),
        "channels": [channel.name for channel in predictor.plan.channels],
        "structures": [dataclasses.asdict(each) for each in structures(predictor)],
    }  # fmt: skip
