"""Finding a dataset's files: the user's folder, the cache, else a download."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import pooch


class File(NamedTuple):
    """One file of a dataset: its name and, where one is published, its checksum."""

    name: str
    checksum: str | None = None
    """``algorithm:hex``"""
    remote: str | None = None
    """Its name at the address, if that is another."""


class Source(NamedTuple):
    """Where a dataset's files belong and come from."""

    folder: str
    files: tuple[File, ...]
    url: str
    """Address of the folder of the files, or of ``archive``."""
    archive: File | None = None
    """A tar that holds them in ``folder``'s last component, if they come as one."""


class DataNotFound(FileNotFoundError):  # noqa: N818
    """A dataset's files are neither here nor to be had; the message says which go where."""


def _roots() -> list[Path]:
    """$LMECH_DATA, then the cache folder."""
    own = os.environ.get("LMECH_DATA")
    return [*([Path(own).expanduser()] if own else []), Path(pooch.os_cache("lmech"))]


def sha256(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _warn_if_altered(path: Path, file: File) -> None:
    if file.checksum is None:
        return
    algorithm, expected = file.checksum.split(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if found != expected:
        warnings.warn(
            f"{path} is not the published file ({algorithm} {found}, published {expected}); "
            "it is used as it is",
            stacklevel=3,
        )


def locate(source: Source) -> list[Path]:
    """Paths of the source's files, in order.

    A folder that has them all is used as it is, with a warning for a file that differs from the
    published one. Otherwise they are downloaded into the cache, where a wrong checksum is an
    error. Raises DataNotFound, naming the files and the folder, if that fails.
    """
    for root in _roots():
        paths = [root / source.folder / file.name for file in source.files]
        if all(path.is_file() for path in paths):
            for path, file in zip(paths, source.files, strict=True):
                _warn_if_altered(path, file)
            return paths
    try:
        return _download(source)
    except (OSError, ValueError) as error:
        raise DataNotFound(_what_to_do(source, error)) from error


def _download(source: Source) -> list[Path]:
    folder = _roots()[-1] / source.folder
    if source.archive is None:
        return [
            Path(pooch.retrieve(f"{source.url}/{f.remote or f.name}", f.checksum, f.name, folder))
            for f in source.files
        ]
    members = [f"{folder.name}/{file.name}" for file in source.files]
    untar = pooch.Untar(members=members, extract_dir=str(folder.parent))
    archive = source.archive
    pooch.retrieve(
        f"{source.url}/{archive.name}", archive.checksum, archive.name, folder.parent, untar
    )
    return [folder / file.name for file in source.files]


def _what_to_do(source: Source, error: Exception) -> str:
    names = ", ".join(file.name for file in source.files)
    folders = " or ".join(str(root / source.folder) for root in _roots())
    hint = "" if os.environ.get("LMECH_DATA") else " (set LMECH_DATA to use a folder of your own)"
    return (
        f"files not found: put {names} into {folders}{hint}; "
        f"the download from {source.url} failed: {_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def expect_size(path: Path, size: int, found: int) -> None:
    """Raise ValueError for a file that is truncated or of another format."""
    if found != size:
        raise ValueError(f"{path} holds {found} bytes where {size} belong: truncated, or not it")
