r"""The peer of ``mup``: a sub-grid of the MLP of microsoft/mup, trained in mup's own way.

    python -m scripts.bench.mup_loop loader cifar-10-batches-bin --out losses.json \
        --widths 256 512 --rates 0.01 0.02 --steps 300

One net after another, in PyTorch on the CPU, with mup's ``MuReadout``, ``set_base_shapes`` and
``MuSGD``: bias-free ReLU 3072-n-n-10, cross-entropy, SGD without momentum, batch 64, input
multiplier 1/256, output multiplier 32, readout at zero, base width 256, pixels in [−1, 1].

``tensor``: the images are one tensor, and a batch is its rows at a slice of a permutation.
``loader``: a DataLoader with two workers that scale image by image, as mup's example has it.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import mup
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from scripts.bench.timing import Trained, clocks

BASE = 256
BATCH = 64
INPUT = 1 / 256
OUTPUT = 32.0
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Net(nn.Module):
    """3072-n-n-10; the first layer's weights are as much larger as their multiplier is small."""

    def __init__(self, width: int) -> None:
        """Drawn by PyTorch's defaults: see ``drawn``."""
        super().__init__()
        self.first = nn.Linear(RECORD - 1, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.readout = mup.MuReadout(
            width, 10, bias=False, readout_zero_init=True, output_mult=OUTPUT
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, …] to logits [B, 10]."""
        h = functional.relu(INPUT**0.5 * self.first(x.flatten(1)))
        return self.readout(functional.relu(self.second(h)))


def drawn(width: int) -> Net:
    """A net with its base shapes set, W ~ N(0, 1/fan_in) and the readout at zero."""
    net = mup.set_base_shapes(Net(width), Net(BASE), delta=Net(BASE + 1))
    for layer in (net.first, net.second):
        mup.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    with torch.no_grad():
        net.first.weight.div_(INPUT**0.5)
    return net


def train(net: Net, rate: float, batches: Batches) -> Trained:
    """A step a batch; the losses stay tensors until the end."""
    optimizer = mup.MuSGD(net.parameters(), lr=rate)
    losses, started = [], ()
    for x, y in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        started = started or clocks()
    wall, cpu = (now - then for now, then in zip(clocks(), started, strict=True))
    return Trained(torch.stack(losses).tolist(), wall, cpu)


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's training images [50000, 3, 32, 32], uint8, and labels, from its binary version."""
    files = [np.fromfile(folder / f"data_batch_{i}.bin", np.uint8) for i in range(1, 6)]
    records = np.concatenate(files).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0].astype(np.int64)


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Pixels of uint8 to [−1, 1]."""
    return images.float().div_(255).sub_(0.5).div_(0.5)


def from_tensor(images: np.ndarray, labels: np.ndarray) -> Iterator[Batches]:
    """Epochs without end; each is a permutation in batches, what is left over sits it out."""
    x = scaled(torch.from_numpy(images))
    y = torch.from_numpy(labels)
    while True:
        order = torch.randperm(len(x))
        rows = order[: len(x) // BATCH * BATCH].split(BATCH)
        yield ((x[chosen], y[chosen]) for chosen in rows)


class Images(Dataset):
    """Images transformed one by one; by hand, since torchvision need not fit a CPU's PyTorch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """As ``read`` has them."""
        self.images, self.labels = torch.from_numpy(images), labels

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image [3, 32, 32] and its label."""
        return scaled(self.images[index]), self.labels[index]


def from_loader(images: np.ndarray, labels: np.ndarray) -> Iterator[Batches]:
    """Epochs without end, from two workers."""
    dataset = Images(images, labels)
    while True:
        yield DataLoader(dataset, BATCH, shuffle=True, num_workers=2, drop_last=True)


WAYS: dict[str, Callable[[np.ndarray, np.ndarray], Iterator[Batches]]] = {
    "tensor": from_tensor,
    "loader": from_loader,
}


def take(epochs: Iterator[Batches], steps: int) -> Batches:
    """The first batches of fresh epochs."""
    return islice((batch for epoch in epochs for batch in epoch), steps)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("folder", type=Path, help="of CIFAR-10's binary version")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train the sub-grid; write its losses."""
    asked = arguments()
    torch.manual_seed(asked.seed)
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # on one core
    epochs = WAYS[asked.way](*read(asked.folder))
    runs = [
        {
            "width": width,
            "rate": rate,
            **train(drawn(width), rate, take(epochs, asked.steps))._asdict(),
        }
        for width in asked.widths
        for rate in asked.rates
    ]
    asked.out.write_text(json.dumps(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
