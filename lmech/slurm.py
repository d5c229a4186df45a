"""SLURM: what an array's tasks are given, as a batch script; what is in the queue. No JAX here."""

import re
import shlex
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from annotated_types import Ge
from pydantic import StringConstraints

from lmech import manifest
from lmech.values import ConfigError, Positive

Word = Annotated[str, StringConstraints(pattern=r"^\S+$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\n]+$")]
Time = Annotated[str, StringConstraints(pattern=r"^\d+(:\d+){0,2}$|^\d+-\d+(:\d+){0,2}$")]
"""Minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s."""


class Cluster(NamedTuple):
    """How a sweep's batches are sent, a task each."""

    options: list[str]
    """Of sbatch, of every task."""
    setup: list[str]
    """Shell lines before the program."""
    cpus: int
    limit: int | None
    """Most tasks at once."""
    members: int
    """Most jobs of a batch."""
    requeue: bool
    """Whether a task that was stopped is put into the queue again."""


def slurm(
    partition: Word | None,
    account: Word | None,
    qos: Word | None,
    time: Time,
    cpus: Positive,
    gpus: Annotated[int, Ge(0)],
    mem: Word | None,
    limit: Positive | None,
    members_per_task: Positive,
    signal_seconds: Positive,
    requeue: bool,
    setup: list[Line],
    options: list[Line],
) -> Cluster:
    """One node and one program a task. Raises ConfigError where the signal leaves it no time."""
    if seconds(time) <= signal_seconds:
        raise ConfigError(
            f"cluster.time={time} is not longer than cluster.signal_seconds={signal_seconds}, so a "
            "task would be stopped before it has done anything: raise it"
        )
    named = {"partition": partition, "account": account, "qos": qos, "time": time, "mem": mem}
    told = [f"--{name}={value}" for name, value in named.items() if value is not None]
    own = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={cpus}"]
    own += [f"--gpus={gpus}"] if gpus else []
    own += [f"--signal=USR1@{signal_seconds}", "--requeue" if requeue else "--no-requeue"]
    return Cluster([*told, *own, *options], setup, cpus, limit, members_per_task, requeue)


def seconds(time: str) -> int:
    """A time limit as sbatch reads it."""
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    units = [3600, 60, 1] if days or len(parts) == 3 else [60, 1]
    own = sum(part * unit for part, unit in zip(parts, units, strict=False))
    return own + 86400 * int(days or 0)


SCRIPT = """\
#!/bin/bash
# Written by `lmech submit`. Each task of the array trains one batch of the sweep, or what is left
# of it, as the manifest there has it; its number is the batch's.
{options}

cd {here} || exit
{setup}srun --ntasks=1 --cpus-per-task={cpus} {program} --batch "$SLURM_ARRAY_TASK_ID"
code=$?
{ending}exit $code
"""

REQUEUE = """\
# 75: a signal came, and the state is saved. 138: it came before the program could hear it. SLURM
# gives a task back to the queue for being asked to, not for its exit code. Not for ever, since a
# full disk stops it too.
if { [ $code -eq 75 ] || [ $code -eq 138 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt 200 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" && exit 0
fi
"""


def script(
    cluster: Cluster, name: str, batches: Collection[int], program: Sequence[str], logs: Path
) -> str:
    """The batch script of an array with these batches; ``program`` is what goes on with a sweep.

    A signal with no ``B:`` goes to the steps alone: hence ``srun``, and the shell outlives it.
    """
    array = manifest.spans(batches) + (f"%{cluster.limit}" if cluster.limit else "")
    output = str(logs).replace("%", "%%") + "/%A_%a.log"
    own = [f"--job-name={name}", f"--array={array}", f'--output="{output}"', "--open-mode=append"]
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in [*own, *cluster.options]),
        here=shlex.quote(str(Path.cwd())),
        setup="".join(f"{line}\n" for line in cluster.setup),
        cpus=cluster.cpus,
        program=shlex.join(program),
        ending=REQUEUE if cluster.requeue else "",
    )


def send(file: Path) -> int:
    """Give the script to sbatch; the array's id. Raises ConfigError."""
    text = _told(["sbatch", "--parsable", str(file)])
    found = re.match(r"\d+", text)
    if found is None:
        raise ConfigError(f"sbatch {file}: it names no job: {text.strip()!r}")
    return int(found[0])


def queue(arrays: Collection[int]) -> dict[int, tuple[int, str]]:
    """Batch → the array that has it in the queue, and its state there, as PENDING or RUNNING.

    Raises ConfigError where squeue does not say; it is not asked if there are no ``arrays``.
    """
    if not arrays:
        return {}
    # Of one's own and not by id: an id that the queue has forgotten is an error to it.
    text = _told(["squeue", "--noheader", "--array", "--me", "--format=%F %K %T"])
    rows = [line.split() for line in text.splitlines()]
    return {
        int(batch): (int(array), state)
        for array, batch, state in rows
        if batch.isdecimal() and int(array) in arrays
    }


def _told(command: Sequence[str]) -> str:
    """What a command of SLURM's prints. Raises ConfigError, in a line, where it fails."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    except OSError as error:
        raise ConfigError(f"{command[0]}: {error.strerror} (is SLURM on this machine?)") from error
    if done.returncode != 0:
        first = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise ConfigError(f"{shlex.join(command)}: {first}")
    return done.stdout
