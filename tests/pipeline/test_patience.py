"""Which errors are an outage, and how long one is waited out."""

import errno
import itertools
import socket

import pytest

from pipeline import patience
from pipeline.errors import StoreAwayError


def kind(module, name, **attributes):
    """An error class of a package that need not be installed."""
    return type(name, (Exception,), {"__module__": module, **attributes})()


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.EBUSY, "SlowDown"), True),
        (socket.gaierror("name not known"), True),
        (kind("botocore.exceptions", "HTTPClientError"), True),
        (kind("aiohttp.client_exceptions", "ClientError"), True),
        (kind("gcsfs.retry", "HttpError", code=503), True),
        (kind("gcsfs.retry", "HttpError", code=404), False),
        (kind("botocore.exceptions", "NoCredentialsError"), False),
        (FileNotFoundError(), False),
        (PermissionError(errno.EACCES, "no"), False),
        (OSError(errno.EINVAL, "InvalidBucketName"), False),
        (ValueError(), False),
    ],
)
def test_what_is_an_outage(error, outage):
    assert patience.is_outage(error) == outage


@pytest.fixture
def clock(monkeypatch):
    """A clock that sleeping alone moves."""
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def test_it_is_tried_again_with_growing_pauses_until_it_works(clock):
    tries, said = [], []

    def call():
        tries.append(clock[0])
        if clock[0] < 20:
            raise ConnectionRefusedError("nobody there")
        return 7

    assert patience.patiently(call, "store s3://x", 60, said.append) == 7
    pauses = [b - a for a, b in itertools.pairwise(tries)]
    assert len(tries) < 15
    assert max(pauses) <= patience.LONGEST_PAUSE_SECONDS
    assert said[0].startswith("store s3://x is away (ConnectionRefusedError: nobody there)")
    assert said[1].startswith("store s3://x is back after 2")


def test_it_ends_when_patience_does(clock):
    def call():
        raise ConnectionRefusedError("nobody there")

    with pytest.raises(StoreAwayError, match="has been away for"):
        patience.patiently(call, "store s3://x", 60, lambda text: None)
    assert 60 < clock[0] < 60 + patience.LONGEST_PAUSE_SECONDS + 1


def test_what_is_no_outage_is_told_at_once(clock):
    def call():
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        patience.patiently(call, "store s3://x", 60, lambda text: None)
    assert clock[0] == 0
