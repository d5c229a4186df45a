"""Runs a script that wants CUDA and torchvision's CIFAR-10, on the CPU and on lmech's files.

    python -m scripts.bench.cpu SCRIPT WORD …

Nothing of the script is changed: ``.cuda()`` returns what it is called on, ``device="cuda"`` is the
CPU, and ``torchvision.datasets.CIFAR10`` reads the binary version that lmech has.
"""

import functools
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from lmech.datasets import cifar10, files

FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "randn", "rand", "arange", "eye")
RECORD, SIDE = 3073, 32


class CIFAR10:
    """As torchvision's: ``data`` [N, 32, 32, 3] of uint8 and ``targets``."""

    def __init__(self, train: bool = True, **_: Any) -> None:
        """From the binary version; ``root`` and ``download`` are not looked at."""
        folder = files.locate(cifar10.SOURCE)[0].parent
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
        read = [np.fromfile(folder / name, np.uint8).reshape(-1, RECORD) for name in names]
        records = np.concatenate(read)
        self.data = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        self.targets = records[:, 0].tolist()


def on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with CUDA's device taken for the CPU."""

    @functools.wraps(factory)
    def made(*words: Any, **options: Any) -> Any:
        if "cuda" in str(options.get("device")):
            options["device"] = "cpu"
        return factory(*words, **options)

    return made


def patch() -> None:
    """For the rest of this process."""
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self
    for name in FACTORIES:
        setattr(torch, name, on_cpu(getattr(torch, name)))
    torchvision, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    datasets.CIFAR10 = CIFAR10  # type: ignore[attr-defined]
    torchvision.datasets = datasets  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": torchvision, "torchvision.datasets": datasets}


if __name__ == "__main__":
    patch()
    script = Path(sys.argv[1])
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
