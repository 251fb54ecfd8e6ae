"""Where a Ray of our own keeps its sockets and logs."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError

VARIABLES = ("RAY_TMPDIR", "TMPDIR")  # the first that is set counts, as for Ray itself
USUAL = ("/tmp", "/var/tmp", "/dev/shm")
# Of the 107 bytes that the path of a socket may have, Ray adds /session_DATE_TIME_PID/sockets/NAME.
LONGEST = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


@dataclass(frozen=True)
class RayFolder:
    """Args:
    moved: why it is not where it was asked for; "" if it is.
    """

    path: str
    moved: str = ""


def ray_folder() -> RayFolder:
    """The folder for Ray's own files: where RAY_TMPDIR or TMPDIR says, or a usual place.

    Raises:
        UsageError: none of them will do.
    """
    variable = next((name for name in VARIABLES if os.environ.get(name)), None)
    asked = os.path.abspath(os.environ[variable]) if variable else USUAL[0]
    problem = ""
    for place in dict.fromkeys((asked, *USUAL)):
        path = _below(Path(place))
        wrong = _wrong(path)
        if not wrong:
            moved = f"{variable or 'the folder for temporary files'} ({asked}) {problem}"
            return RayFolder(str(path), moved if problem else "")
        problem = problem or wrong
    raise UsageError(
        f"Ray's own files find no place: {variable or 'TMPDIR'} ({asked}) {problem}, and so it is "
        f"with {', '.join(USUAL)}; set TMPDIR to a short folder that can be written"
    )


def _below(place: Path) -> Path:
    """The folder there: Ray's usual one, or one of this user's where others own that."""
    usual = place / "ray"
    mine = not usual.exists() or os.access(usual, os.W_OK | os.X_OK)
    return usual if mine else place / f"ray-{os.getuid()}"


def _wrong(path: Path) -> str:
    """What is wrong with a folder for Ray's files, "" if nothing is."""
    if len(os.fsencode(path)) > LONGEST:
        most = LONGEST - len("/ray")
        return f"is too long for the names of Ray's sockets (at most {most} characters)"
    try:
        folder = path if path.is_dir() else path.parent
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return ""
