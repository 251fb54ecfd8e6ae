"""Checks a tracking URI before any work, without MLflow."""

from __future__ import annotations

import base64
import configparser
import http.client
import importlib.util
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.errors import UsageError, nearest

# Python packages that speak to a database, by the driver that the URI names.
DRIVERS = {
    "postgresql": "psycopg2",
    "mysql": "MySQLdb",
    "mssql": "pyodbc",
    "mysqldb": "MySQLdb",
}
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
EXAMPLES = "sqlite:////path/to/mlflow.db or http://host:5000"


def default_uri(store_dir: Path) -> str:
    """The tracking database of a store on a local disk: `mlflow.db` inside it."""
    return f"sqlite:///{Path(store_dir).absolute()}/mlflow.db"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite URI, or None for any other URI."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.split("?", 1)[0].removeprefix("sqlite:///")).absolute()


def redact(uri: str) -> str:
    """The URI without its password, for messages."""
    return re.sub(r"(://[^:/@]*:)[^@/]*@", r"\1***@", uri)


def check_uri(uri: str, timeout: float = 2.0) -> str | None:
    """Refuse a tracking URI that can never work; return a warning for a server that is away.

    Raises:
        UsageError: the URI is malformed, its scheme is unknown, a sqlite file's folder is not
            writable, or the server refuses the credentials.
    """
    scheme, separator, _ = uri.partition(":")
    base = scheme.split("+")[0]
    if not separator or "://" not in uri:
        raise UsageError(f"tracking URI '{redact(uri)}' has no scheme; write {EXAMPLES}")
    if base not in SCHEMES:
        raise UsageError(
            f"tracking URI '{redact(uri)}' has the unknown scheme '{scheme}'"
            f"{nearest(base, SCHEMES)}; known are {', '.join(SCHEMES)}"
        )
    if base == "sqlite":
        return _check_sqlite(uri)
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise UsageError(
            f"tracking URI '{redact(uri)}' is malformed ({error}); write {EXAMPLES}"
        ) from error
    if not parts.hostname or port == 0 or any(c.isspace() for c in uri):
        raise UsageError(f"tracking URI '{redact(uri)}' names no valid host; write {EXAMPLES}")
    if base in ("http", "https"):
        return _check_server(uri, timeout)
    driver = scheme.partition("+")[2] or base
    package = DRIVERS.get(driver, driver)
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"tracking URI '{redact(uri)}' needs the Python package {package}, which is not "
            "installed; install it or track through an MLflow server (http://host:5000)"
        )
    return None


def _check_sqlite(uri: str) -> None:
    if not uri.startswith("sqlite:///") or uri.rstrip("/") == "sqlite:" or uri.endswith("/"):
        raise UsageError(f"tracking URI '{uri}' names no file; write sqlite:////path/to/mlflow.db")
    path = sqlite_path(uri)
    if path.name == ":memory:":
        raise UsageError(f"tracking URI '{uri}' keeps nothing; write sqlite:////path/to/mlflow.db")
    if path.is_dir():
        raise UsageError(f"tracking URI '{uri}' names a folder; add a file name such as mlflow.db")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"tracking URI '{uri}': {folder} is not a folder; choose another path")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        place = path if path.exists() else folder
        raise UsageError(f"tracking URI '{uri}': {place} is not writable; choose another path")
    if path.exists() and path.stat().st_size:
        with path.open("rb") as stream:
            if stream.read(16) != b"SQLite format 3\0":
                raise UsageError(
                    f"tracking URI '{uri}': the file is no sqlite database; choose another path"
                )


def _check_server(uri: str, timeout: float) -> str | None:
    """Ask the server for one experiment: the cheapest request that needs credentials."""
    name = redact(uri)
    parts = urlsplit(uri)
    bare = urlunsplit(parts._replace(netloc=_host(parts.netloc))).rstrip("/")
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


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]


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
