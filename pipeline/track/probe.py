"""One quick request to a tracking server or database: is it there, does it take our credentials?"""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.errors import UsageError
from pipeline.track.redaction import redact


def check_server(uri: str, timeout: float) -> str | None:
    """Ask the server for one experiment: the cheapest request that needs credentials."""
    name = redact(uri)
    parts = urlsplit(uri)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    headers = {"Content-Type": "application/json", **_authorization(uri)}
    request = urllib.request.Request(
        f"{bare}/api/2.0/mlflow/experiments/search", data=b'{"max_results": 1}', headers=headers
    )
    away = f"tracking server {name} cannot be reached ({{}}); the run's records are kept and sent"
    away += " when it is back"
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=_tls()) as answer:
            json.loads(answer.read(1 << 20))
            return None
    except urllib.error.HTTPError as error:
        return _judge(name, error, away)
    except ValueError as error:
        raise UsageError(
            f"{name} answers, but not as an MLflow server; check the address of --tracking-uri"
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise UsageError(
                f"tracking server {name}: its certificate is not trusted; set "
                "MLFLOW_TRACKING_SERVER_CERT_PATH or MLFLOW_TRACKING_INSECURE_TLS=true"
            ) from error
        return away.format(error.reason)
    except http.client.HTTPException as error:
        raise UsageError(
            f"{name} answers, but not as an MLflow server; check the address of --tracking-uri"
        ) from error
    except OSError as error:
        return away.format(error)


_REFUSED = re.compile(
    r"authentication failed|no password supplied|Access denied|Login failed|role \S+ does not exist"
)
_UNKNOWN = re.compile(r"database \S+ does not exist|Unknown database")


def check_database(uri: str, with_driver: str, timeout: float) -> str | None:
    """Connect to a database once.

    Raises:
        UsageError: it refuses the credentials, or has no such database.
    """
    import sqlalchemy

    name = redact(uri)
    try:
        how = {"connect_timeout": max(2, int(timeout))} if "postgresql" in with_driver else {}
        engine = sqlalchemy.create_engine(with_driver, connect_args=how)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except (sqlalchemy.exc.DBAPIError, OSError) as error:
        text = redact(str(getattr(error, "orig", None) or error).strip())
        if _REFUSED.search(text):
            raise UsageError(
                f"tracking database {name} refuses the user or the password; set them in the URI "
                "(special characters as %XX)"
            ) from error
        if _UNKNOWN.search(text):
            raise UsageError(
                f"tracking database {name}: there is no database of that name; make it first"
            ) from error
        reason = text.splitlines()[0][:200] if text else type(error).__name__
        return (
            f"tracking database {name} cannot be reached ({reason}); the run's records are kept "
            "and sent when it is back"
        )
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        raise UsageError(f"tracking URI '{name}' cannot be used ({redact(str(error))})") from error
    return None


def _judge(name: str, error: urllib.error.HTTPError, away: str) -> str:
    body = error.read(4096).decode(errors="replace")
    if error.code == 403 and "Invalid Host header" in body:
        raise UsageError(
            f"tracking server {name} does not accept this host name; start it with "
            "--allowed-hosts, or use the name it allows"
        ) from error
    if error.code in (401, 403):
        raise UsageError(
            f"tracking server {name} refuses the credentials (HTTP {error.code}); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        ) from error
    if error.code >= 500 or error.code == 429:
        return away.format(f"HTTP {error.code}")
    raise UsageError(
        f"{name} answers HTTP {error.code}, not as an MLflow server; check --tracking-uri"
    ) from error


def _authorization(uri: str) -> dict[str, str]:
    """The credentials MLflow's client would send: environment first, then its file, then URI."""
    stored = configparser.ConfigParser(interpolation=None)
    try:
        stored.read(Path("~/.mlflow/credentials").expanduser())
    except (configparser.Error, OSError):
        stored = configparser.ConfigParser()
    section = dict(stored["mlflow"]) if stored.has_section("mlflow") else {}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or section.get("mlflow_tracking_username")
    word = os.environ.get("MLFLOW_TRACKING_PASSWORD") or section.get("mlflow_tracking_password")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    parts = urlsplit(uri)
    if not user and parts.username:
        user, word = unquote(parts.username), unquote(parts.password or "")
    if user and word is not None:
        pair = base64.b64encode(f"{user}:{word}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _tls() -> ssl.SSLContext:
    bundle = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    bundle = bundle or os.environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context(
        cafile=bundle if bundle and Path(bundle).is_file() else None
    )
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
