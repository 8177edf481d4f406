"""Why a request is not answered with a mask: HTTP status and one message, which names nothing of this machine."""

from __future__ import annotations


class Refused(Exception):
    """A request that gets no mask.

    Args:
        status: HTTP status.
        message: what is wrong and what to do next, for the client.
        retry_s: seconds after which it is worth another try.
    """

    def __init__(self, status: int, message: str, *, retry_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_s = status, message, retry_s


def too_large(message: str) -> Refused:
    """More than the service takes."""
    return Refused(413, f"{message}; send a smaller scan, or ask whoever runs this service to raise its limits")


def busy() -> Refused:
    """All places are taken."""
    return Refused(503, "all places in the queue are taken; try again later", retry_s=10)


def ending() -> Refused:
    """The service is about to end."""
    return Refused(503, "the service is ending; try again later", retry_s=30)


def no_room() -> Refused:
    """The disk is too full."""
    return Refused(507, "the service's disk has no room for this scan; try again later", retry_s=60)
