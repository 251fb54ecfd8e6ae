"""Tracking URIs as people may see them: without the password."""

from __future__ import annotations

import re

PUT_BACK = (
    "with the password in the place of ***, or without it, in MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD for a server"
)


def redact(uri: str) -> str:
    """The URI without its password, for messages and records."""
    uri = re.sub(r"(://[^:/@]*:)[^/]*@", r"\1***@", uri)
    return re.sub(r"([?&](?:password|passwd|pwd|sslpassword)=)[^&\s]*", r"\1***", uri, flags=re.I)
