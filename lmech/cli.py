"""The `lmech` command."""

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lmech import __version__, hints, project
from lmech.mistakes import ConfigError
from lmech.stopping import FollowedError, StoppedError

USAGE = """\
lmech: a lab bench for learning mechanics

train
  lmech KEY=VALUE …                      one run, e.g. lmech dataset=digits steps=500
  lmech -m KEY=VALUES …                  a sweep: every combination; values are 0.1,0.2 or
                                         range(8) or geomspace(low, high, n) or linspace(…)
  lmech -m hydra/KEY=VALUE …             the same by another sweeper or launcher of Hydra's, e.g.
                                         hydra/launcher=joblib or hydra/sweeper=optuna
  lmech resume DIR [rerun=failed]        go on with a sweep as its manifest has it; --batch N: with
                                         that batch alone
  lmech submit [cluster=NAME] [cluster.KEY=VALUE …] …
                                         send a run, a sweep or `reproduce …` to SLURM, as an array
                                         of batches, and return; settings: conf/cluster
  lmech status DIR                       how far a sweep is, wherever it runs
  lmech plan [--compile] [--verify] …    what any of these, or `reproduce`, would run: jobs,
                                         programs, time, memory; starts nothing. --verify lowers
                                         them at another value of each input key: the text must
                                         not change
  lmech plan --show parametrization …    its table: each tensor's role, init, multiplier, rates

experiments
  lmech reproduce EXPERIMENT [KEY=VALUE …] [--scale SCALE]
                                         the experiment's own sweep, its claims, figure, report;
                                         --all: every experiment in turn, and one table
  lmech list experiments                 what each shows, of which paper, its last verdict here

results
  lmech collect DIR [--columns A,B] [--steps last|0,100|0:1000:10] [--to FILE]
                                         results as one table: .parquet or .csv
  lmech measure DIR observables=[A,B] [observables.A.KEY=VALUE …] [--steps last|0,100|0:1000:10]
                                         add columns to finished runs, from the weights that they
                                         kept (`snapshots`); trains nothing
  lmech compare DIR comparison=NAME [comparison.KEY=VALUE …]
                                         measure every two finished runs that differ in one key,
                                         from the weights that they kept; trains nothing
  lmech log DIR logger=[wandb,tensorboard]
                                         what these loggers would have shown of finished runs
  lmech report DIR … [--to FILE.html]    sweeps as one HTML file that opens offline: figures,
                                         claims, jobs, and curves to read values from
  lmech atlas [DIR] [--to FOLDER]        the same of all sweeps below outputs, as a static site

machine
  lmech verify                           golden numbers beside this machine's

more
  lmech list [GROUP [OPTION]]            models, datasets, optimizers, … and what each takes
  lmech list keys [KEY=VALUE …]          every key of a choice, with its value
  lmech init NAME                        a folder of your own: an experiment and its module
  lmech completion bash|zsh|fish         words for the shell to complete: eval "$(…)"
  lmech COMMAND --help                   a command's arguments, with examples
  lmech --version

--config-dir DIR, anywhere on the line, adds your own config groups. A folder whose pyproject.toml
has a table [tool.lmech] needs no flag: `lmech init` writes one.
Keys follow Hydra's grammar; `lmech list keys` shows them with their defaults. Results go to
outputs/<name>/<sweep>/ (see the README); a run that is already there is not run again.

exit codes  0 fine, or every verdict as expected · 1 a run failed, or a verdict is not the expected
            one · 2 a verdict is undetermined, or the command line is wrong · 75 stopped by SIGTERM
            or SIGUSR1, and saved: the same command goes on · 130 interrupted (Ctrl-C)
"""


COMMANDS = (
    *("reproduce", "plan", "resume", "submit", "status", "measure", "compare", "list"),
    *("collect", "log", "report", "atlas", "verify", "init", "completion"),
)
"""Each is a module of ``lmech.commands``."""


def command() -> NoReturn:
    """The process that the shell starts: ``main`` with its arguments and exit code.

    JAX alone brings a million objects that live as long as the process. The garbage collector goes
    through them seldom, and not once more at the exit: most of a second of every command.
    """
    gc.set_threshold(50_000)
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `| head`; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + 13  # as the shell tells of SIGPIPE
    gc.freeze()
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors of the user are one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _started(words)
    except BrokenPipeError:
        raise
    except (ConfigError, OSError) as error:
        print(f"lmech: {error}", file=sys.stderr)
        return 2
    except FollowedError:
        return 0
    except StoppedError as stopped:
        print(f"lmech: {stopped}", file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print("\nlmech: interrupted", file=sys.stderr)
        return 130


def _started(words: list[str]) -> int:
    """In the project that the words name, or that the working directory is in."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"lmech {__version__}")
        return 0
    if words[0] == "completion":  # which finds the --config-dir of the line that it completes
        return _dispatch(words)
    words, folder = project.split(words)
    with project.at(folder):
        project.join()
        return _dispatch(words)


def _dispatch(words: list[str]) -> int:
    if words[0] in COMMANDS:
        return importlib.import_module(f"lmech.commands.{words[0]}").main(words[1:])
    overrides = [word for word in words if word not in ("-m", "--multirun")]
    if overrides and "=" not in overrides[0]:
        hint = hints.nearest(overrides[0], COMMANDS)
        raise ConfigError(f"no command '{overrides[0]}'{hint} (see lmech --help)")
    multirun = overrides != words
    from lmech import launching

    if any(map(launching.is_hydras, overrides)):
        from lmech import application

        return application.main(overrides, multirun)
    return launching.run(overrides, multirun)
