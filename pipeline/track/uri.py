"""Where runs are tracked, checked before any work and without MLflow.

Every command that runs something imports this module; what speaks HTTP is in `track.probe`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import UsageError, nearest
from pipeline.track.redaction import redact

# Python packages that speak to a database, by what the URI names; the first that is there is used.
DRIVERS = {
    "postgresql": ("psycopg", "psycopg2"),
    "mysql": ("MySQLdb", "pymysql"),
    "mssql": ("pyodbc",),
    "mysqldb": ("MySQLdb",),
}
# What SQLAlchemy calls a driver, where that is not its package's name.
DIALECTS = {"MySQLdb": "mysqldb"}
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
EXAMPLES = "sqlite:////path/to/mlflow.db or http://host:5000"


VARIABLE = "MLFLOW_TRACKING_URI"  # MLflow's own


def chosen_uri(option: str | None) -> str | None:
    """What `--tracking-uri` says, or else MLFLOW_TRACKING_URI; None for the store's own."""
    return option if option is not None else os.environ.get(VARIABLE, "").strip() or None


def check_chosen_uri(uri: str) -> str | None:
    """`check_uri`, whose refusal tells where the URI comes from."""
    try:
        return check_uri(uri)
    except UsageError as error:
        if uri != chosen_uri(None):
            raise
        raise UsageError(
            f"{error} ({VARIABLE} says so: correct it, unset it, or give --tracking-uri)"
        ) from error


def default_uri(store_dir: Path) -> str:
    """The tracking database of a store on a local disk: `mlflow.db` inside it."""
    return sqlite_uri(Path(store_dir).absolute() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The URI of a database file: SQLAlchemy reads %XX in its name, and takes ? for its end."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite URI, or None for any other URI."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(unquote(uri.split("?", 1)[0].removeprefix("sqlite:///"))).absolute()


def drop_stray_folder(uri: str) -> None:
    """Remove the empty folder that MLflow makes for a sqlite file whose name has %XX."""
    if uri.startswith("sqlite:") and "%" in uri:
        with contextlib.suppress(OSError):
            os.removedirs(Path(uri.removeprefix("sqlite:///")).parent)


def file_location(path: Path) -> str:
    """A local path as MLflow's artifact location, which reads %XX even in plain paths."""
    return path.as_uri() if "%" in str(path) else str(path)


def check_uri(uri: str, timeout: float = 2.0) -> str | None:
    """Refuse a tracking URI that can never work; return a warning for a server that is away.

    Raises:
        UsageError: the URI is malformed, its scheme is unknown, a sqlite file's folder is not
            there or not writable, or the server refuses the credentials.
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
        from pipeline.track.probe import check_server

        return check_server(uri, timeout)
    packages = _packages(scheme)
    if _installed(packages) is None:
        raise UsageError(
            f"tracking URI '{redact(uri)}' needs the Python package {' or '.join(packages)}, which "
            "is not installed; install it or track through an MLflow server (http://host:5000)"
        )
    from pipeline.track.probe import check_database

    return check_database(uri, with_driver(uri), timeout)


def with_driver(uri: str) -> str:
    """A database's URI with the driver that is installed here; any other URI as it is."""
    scheme, _, rest = uri.partition(":")
    if scheme not in DRIVERS or (package := _installed(_packages(scheme))) is None:
        return uri
    return f"{scheme}+{DIALECTS.get(package, package)}:{rest}"


def _packages(scheme: str) -> tuple[str, ...]:
    base, _, driver = scheme.partition("+")
    return DRIVERS.get(driver, (driver,)) if driver else DRIVERS[base]


def _installed(packages: Sequence[str]) -> str | None:
    return next((name for name in packages if importlib.util.find_spec(name) is not None), None)


def _check_sqlite(uri: str) -> None:
    if not uri.startswith("sqlite:///") or uri.rstrip("/") == "sqlite:" or uri.endswith("/"):
        raise UsageError(f"tracking URI '{uri}' names no file; write sqlite:////path/to/mlflow.db")
    path = sqlite_path(uri)
    if path.name == ":memory:":
        raise UsageError(f"tracking URI '{uri}' keeps nothing; write sqlite:////path/to/mlflow.db")
    if path.is_dir():
        raise UsageError(f"tracking URI '{uri}' names a folder; add a file name such as mlflow.db")
    if path.exists() and not path.is_file():
        raise UsageError(f"tracking URI '{uri}' names no ordinary file; choose another path")
    folder = path.parent
    if not folder.is_dir():
        if folder.exists():
            raise UsageError(f"tracking URI '{uri}': {folder} is not a folder; choose another path")
        raise UsageError(
            f"tracking URI '{uri}': there is no folder {folder}; make it, or choose another path"
        )
    try:
        tempfile.TemporaryFile(dir=folder).close()
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise UsageError(
            f"tracking URI '{uri}': {error.filename or folder} is not writable "
            f"({error.strerror}); choose another path"
        ) from error
    if path.exists() and path.stat().st_size:
        with path.open("rb") as stream:
            if stream.read(16) != b"SQLite format 3\0":
                raise UsageError(
                    f"tracking URI '{uri}': the file is no sqlite database; choose another path"
                )
