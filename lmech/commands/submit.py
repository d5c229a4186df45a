"""`lmech submit`: a sweep as a job array of a cluster's."""

import argparse
from typing import TYPE_CHECKING

from lmech import config
from lmech.commands import new_parser
from lmech.commands.plan import asked_of
from lmech.mistakes import one_line
from lmech.values import ConfigError

if TYPE_CHECKING:
    from lmech.slurm import Cluster
    from lmech.submitting import Submission


def main(words: list[str]) -> int:
    """Send what the rest of the line would run; returns the exit code."""
    _, rest = _parser().parse_known_args(words)
    own = [word for word in rest if config.is_clusters(word)]
    cluster = cluster_of(own)
    jobs, request = asked_of([word for word in rest if word not in own])
    from lmech import submitting

    for line in told(submitting.submit(jobs, cluster, request), len(jobs), request["command"]):
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "submit",
        "Send what any other command line would run to SLURM, as one job array, and return.",
        {
            "lmech submit -m seed=0,1,2 model.width=64,128": "a sweep",
            "lmech submit reproduce edge_of_stability cluster.time=1:00:00": "an experiment",
            "lmech submit -m seed=0,1 cluster.members_per_task=8 cluster.limit=4": (
                "tasks of at most 8 jobs, at most 4 of them at once"
            ),
        },
    )
    parser.usage = "lmech submit [cluster.KEY=VALUE …] (KEY=VALUE … | -m … | reproduce …)"
    return parser


def cluster_of(words: list[str]) -> "Cluster":
    """What ``cluster=NAME`` and ``cluster.KEY=VALUE`` say. Raises ConfigError."""
    from hydra.utils import instantiate

    section = config.cluster(words)
    try:
        found: Cluster = instantiate(section)
    except Exception as error:
        raise ConfigError(f"cluster: {one_line(error)}") from error
    return found


def told(sent: "Submission", jobs: int, command: str) -> list[str]:
    """What was sent, what not and why, and what to type next."""
    from lmech.manifest import spans

    lines = [f"jobs:   {jobs}, of which {sent.jobs} to do"]
    if sent.array is not None:
        several = f"{len(sent.batches)} task{'s' * (len(sent.batches) > 1)}"
        lines.append(f"array:  {sent.array}, {several}: batches {spans(sent.batches)}")
        lines.append(f"script: {sent.script}")
    for array in sorted({array for array, _ in sent.waiting.values()}):
        there = [batch for batch, (whose, _) in sent.waiting.items() if whose == array]
        lines.append(f"queued: batches {spans(there)} of array {array}; not sent again")
    if sent.held:
        lines.append(f"held:   batches {spans(sent.held)}, which a process works on; not sent")
    if not sent.jobs:
        lines.append(f"nothing to send; `{command}` reads, judges and draws what is there")
        return lines
    return [*lines, f"folder: {sent.folder}", f"next:   lmech status {sent.folder}"]
