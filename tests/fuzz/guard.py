"""Watches what Python does: nothing is to be written outside one folder, and nothing executed."""

import os
import sys
from pathlib import Path

EXECUTE = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "subprocess.Popen",
    "pty.spawn",
    "ctypes.dlopen",
    "socket.connect",
    "socket.bind",
    "webbrowser.open",
}
CHANGE = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}


class Guard:
    """While it is `on`, notes what escapes from `folder`. Hooks of Python's cannot be taken off."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.on = False
        self.escapes: list[str] = []
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in EXECUTE:
            self.escapes.append(f"{event} {arguments!r}"[:300])
        elif event in CHANGE:
            # Names in a folder that is open already (`rmtree`) are as good as that folder.
            if not any(isinstance(a, int) and a > 2 for a in arguments[1:] if a is not True):
                for path in arguments[:2]:
                    self._check(event, path)
        elif event == "open":
            path, _, flags = arguments
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            if isinstance(flags, int) and flags & writes and not isinstance(path, int):
                self._check(event, path)

    def _check(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike) or path in ("", b""):
            return
        self.on = False
        try:
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith((self.folder + os.sep, "/dev/null")) and real != self.folder:
                self.escapes.append(f"{event} {real}"[:300])
        finally:
            self.on = True
