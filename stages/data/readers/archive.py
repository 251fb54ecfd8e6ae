"""A .zip of image files: EDM's, with a dataset.json on top, or class folders in an archive."""

from __future__ import annotations

import posixpath
import zipfile
from pathlib import Path

import numpy as np

from pipeline.fingerprint import foreign
from stages.data.readers.folder import check_empty, dataset_json, labelled, source_of
from stages.data.readers.layout import layout_of
from stages.data.readers.mapped import UNREADABLE
from stages.data.readers.names import Names
from stages.data.readers.source import Listing, Source, required
from stages.data.readers.spans import Spans
from stages.data.readers.tree import Found, chosen


def read(settings) -> Source:
    """`settings.path`: the .zip. Without dataset.json its folders mean what they mean on disk."""
    path = required(settings.path, "zip", ".zip of images")
    found, members = _listed(path)
    images = _images(path, found, members)
    if (beside := dataset_json(found)) is not None:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(members[beside])
        return labelled(images, found, text, settings, beside.removesuffix("dataset.json"))
    place = {name: index for index, name in enumerate(found.paths)}

    def images_of(paths):
        return images.of(np.array([place[name] for name in paths], np.int64))

    layout = layout_of(found.paths, str(path))
    check_empty(path, layout, found)
    return source_of(images_of, layout, found, settings)


def pool(path: Path) -> Listing:
    """All images of an archive, sorted by name."""
    found, members = _listed(path)
    if not found.paths:
        raise ValueError(f"{path} holds no images; give one with PNG or JPEG files")
    return Listing(_images(path, found, members), tuple(found.paths), found.said())


def count(path: Path) -> int:
    """How many images lie in an archive. ValueError as `pool` raises for what cannot be listed."""
    return len(_listed(path)[0].paths)


def _listed(path: Path) -> tuple[Found, dict[str, zipfile.ZipInfo]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {_name(info.filename): info for info in archive.infolist()}
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable .zip file ({error}); copy it again") from None
    members = {name: info for name, info in infos.items() if not info.is_dir()}
    found = chosen(members, str(path))
    above = {f"{folder}/" for name in infos for folder in _folders(name)}
    found.folders = sorted(f for f in above if not any(map(foreign, f[:-1].split("/"))))
    return found, members


def _name(stored: str) -> str:
    """A member's name as a relative path: `./a/b` and a Windows tool's `a\\b` are `a/b`."""
    folder = "/" if stored.endswith(("/", "\\")) else ""
    return posixpath.normpath(stored.replace("\\", "/")).lstrip("/") + folder


def _folders(name: str) -> list[str]:
    """The folders that a member lies in, and itself where it is one."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _images(path: Path, found: Found, members: dict[str, zipfile.ZipInfo]) -> Spans:
    chosen_members = [members[name] for name in found.paths]
    for member in chosen_members:
        if member.flag_bits & 1:
            raise ValueError(f"{member.filename} in {path} is encrypted; unpack it")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename} in {path} is packed in a rare way; unpack it")
    return Spans(
        (str(path),),
        Names.of(found.paths),
        np.zeros(len(chosen_members), np.uint16),
        np.array([member.header_offset for member in chosen_members], np.int64),
        np.array([member.compress_size for member in chosen_members], np.int64),
        zipped=True,
        deflated=np.array([m.compress_type == zipfile.ZIP_DEFLATED for m in chosen_members]),
    )
