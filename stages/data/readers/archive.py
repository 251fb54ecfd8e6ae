"""A .zip of image files: EDM's, with a dataset.json on top, or class folders in an archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from stages.data.readers.folder import labelled, source_of
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
    if "dataset.json" in found.companions:
        with zipfile.ZipFile(path) as archive:
            return labelled(images, found, archive.read("dataset.json"), settings)
    place = {name: index for index, name in enumerate(found.paths)}

    def images_of(paths):
        return images.of(np.array([place[name] for name in paths], np.int64))

    return source_of(images_of, layout_of(found.paths, str(path)), found, settings)


def pool(path: Path) -> Listing:
    """All images of an archive, sorted by name."""
    found, members = _listed(path)
    if not found.paths:
        raise ValueError(f"{path} holds no images; give one with PNG or JPEG files")
    return Listing(_images(path, found, members), tuple(found.paths), found.said())


def _listed(path: Path) -> tuple[Found, dict[str, zipfile.ZipInfo]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename: i for i in archive.infolist() if not i.is_dir()}
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable .zip file ({error}); copy it again") from None
    return chosen(members, str(path)), members


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
