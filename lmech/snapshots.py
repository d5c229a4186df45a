"""Weights that runs have kept, and the runs that start from them. No JAX here."""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from lmech.disk import read_json
from lmech.hints import nearest
from lmech.values import Config, ConfigError

NAME = re.compile(r"([\w-]+)@(\d+|last)")


def kept(job_folder: Path) -> dict[int, Path]:
    """A job's weights on disk, by step."""
    files = (job_folder / "weights").glob("*.npz")
    return {int(file.stem): file for file in sorted(files) if file.stem.isdigit()}


def starting_point(config: Config) -> Path | None:
    """The file that ``init_from`` names; None: the model's own draw.

    A job is looked for in every sweep of the output folder. Raises ConfigError.
    """
    text = config.get("init_from")  # a manifest may be older than the key
    if text is None:
        return None
    match = NAME.fullmatch(text)
    if match is None:
        raise ConfigError(f"init_from={text}: write <job>@<step> or <job>@last")
    job, step = match.groups()
    folders = sorted(Path(config["output"]).glob(f"*/*/{job}/weights"))
    if not folders:
        there = [path.parent.name for path in Path(config["output"]).glob("*/*/*/weights")]
        hint = nearest(job, there)
        raise ConfigError(f"init_from={text}: no job {job} in {config['output']} has weights{hint}")
    files = {k: v for folder in reversed(folders) for k, v in kept(folder.parent).items()}
    wanted = _last(text, folders) if step == "last" else int(step)
    if wanted not in files:
        raise ConfigError(
            f"init_from={text}: {job} has no weights of step {wanted}; there are "
            f"{', '.join(map(str, sorted(files)))}"
        )
    return files[wanted]


def _last(text: str, folders: list[Path]) -> int:
    """The step at which the job ended."""
    for folder in folders:
        result = folder.with_name("result.json")
        if result.is_file():
            steps = read_json(result).get("steps")
            if steps is not None:
                return int(steps)
    raise ConfigError(f"init_from={text}: that job has not ended; name a step of its snapshots")


def checksum(file: Path) -> str:
    """SHA-256 of a file, read once while it stays as it is."""
    status = file.stat()
    return _checksum(file, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=1024)
def _checksum(file: Path, *_: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
