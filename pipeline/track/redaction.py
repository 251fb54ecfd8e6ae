"""Tracking URIs as people may see them: without the password."""

from __future__ import annotations

import re

PUT_BACK = (
    "with the password in the place of ***, or without it, in MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD for a server"
)


def redact(uri: str) -> str:
    """A URI, or a text with some, without passwords: for messages, logs and records."""
    uri = re.sub(r"(://[^:/@\s]*:)[^/\s]*@", r"\1***@", uri)
    # A slash in a password makes the URI a wrong one; what is no port may be one.
    uri = re.sub(r"(://[^:/@\s]*:)(?!\*\*\*@)(?!\d+/)[^@\s]*/[^\s]*@", r"\1***@", uri)
    return re.sub(r"((?:\b|_)(?:password|passwd|pwd)=)[^&\s]*", r"\1***", uri, flags=re.I)
