"""Writing files whole: a reader sees the old one or the new one, never a part."""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


# Ten times as fast as those written in Python, where libyaml is there.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def atomically(path: Path, write: Any) -> None:
    """``write(temporary path)``, then rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link_folder(source: Path, target: Path) -> None:
    """``target`` becomes ``source``'s files, without a copy of their bytes where links can be made.

    Files are replaced, never changed, so neither folder can change the other's.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, temporary, copy_function=_link)
    if target.is_dir():
        shutil.rmtree(target)
    temporary.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_text(path: Path, text: str) -> None:
    """Replace the file by this text."""
    atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class DamagedFileError(OSError):
    """A file of ours that says nothing that can be read."""


WRONG = (ValueError, TypeError, KeyError, NotImplementedError, EOFError, yaml.YAMLError)
"""What readers of JSON, YAML, text and Parquet raise for bytes that are none."""


def damaged(path: Path, why: object) -> DamagedFileError:
    """What to raise for a file of ours that cannot be read: one line."""
    first = (str(why).strip().splitlines() or [""])[0]
    return DamagedFileError(f"{path} is damaged ({first}): remove its folder to have it made again")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Read a file of ours inside. Raises DamagedFileError where its bytes are the reason.

    What the system says of it (no such file, no rights) stays what it is.
    """
    try:
        yield
    except WRONG as error:
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno is not None or isinstance(error, DamagedFileError):
            raise
        raise damaged(path, error) from error  # pyarrow's


def read_json(path: Path, kind: type = dict) -> Any:
    """What a file says, a mapping (or a ``list``). Raises DamagedFileError if it is none."""
    with reading(path):
        return _json(path.read_text(encoding="utf-8"), kind)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """What each line of a file says. Raises DamagedFileError for one that is no JSON mapping."""
    with reading(path):
        return [_json(line, dict) for line in path.read_text(encoding="utf-8").splitlines()]


def _json(text: str, kind: type) -> Any:
    found = json.loads(text)
    if not isinstance(found, kind):
        raise TypeError(f"a {type(found).__name__}, not a {kind.__name__}")
    return found


def read_yaml(path: Path) -> Any:
    """What a YAML file says."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)  # noqa: S506 a safe one


def write_yaml(path: Path, value: Any) -> None:
    """Replace the file by this value, keys in their order."""
    write_text(path, yaml.dump(value, Dumper=DUMPER, sort_keys=False, allow_unicode=True))


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; what is not finite becomes null, as JSON has no word for it."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def finite(value: Any) -> Any:
    """Plain Python data with None for NaN and infinities."""
    import numpy as np  # noqa: PLC0415 what reads YAML alone, as the completion, starts without

    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def write_table(path: Path, table: "pa.Table") -> None:
    """Parquet in a canonical layout, so that equal tables are equal bytes."""
    import pyarrow.parquet as pq  # noqa: PLC0415 what writes no table needs no pyarrow

    atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_table(path: Path) -> "pa.Table":
    """What a Parquet file holds. Raises DamagedFileError."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    with reading(path):
        return pq.read_table(path)


def write_weights(path: Path, leaves: "Mapping[str, np.ndarray]") -> None:
    """Parameters by name, ``hidden_1/kernel``, as an npz."""
    import numpy as np  # noqa: PLC0415

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **leaves)

    atomically(path, write)


def read_weights(path: Path) -> "dict[str, np.ndarray]":
    """Parameters by name. Raises ValueError for a file that cannot be read."""
    import numpy as np  # noqa: PLC0415

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
