r"""The peer of ``grokking``: addition modulo p by a one-layer transformer, in plain PyTorch.

Nanda et al. 2023 as their notebook trains it: tensors and ``einsum``, full batch, AdamW with decay
1, ten steps of warm-up, float64 logarithm. Three ways to the same logits at the last position:

``notebook``: all positions, with a causal mask; the loss takes the logits of the last.
``last``: the attention's query, the MLP and the logits of the last position alone.
``tables``: that, and keys and values once for each position and token instead of each example.
"""

import torch
from torch import nn
from torch.nn import functional

from scripts.bench.timing import Trained, clocks

TOKENS = 3
"""The positions: a, b, =."""
WARMUP = 10


class Notebook(nn.Module):
    """All positions; kernels as lmech has them, [width, heads, head] or [heads, head, width]."""

    def __init__(self, outputs: int, width: int, heads: int, hidden: int) -> None:
        """Tensors ~ N(0, 1/width), the readout ~ N(0, 1/outputs), biases 0."""
        super().__init__()
        head = width // heads

        def drawn(*shape: int, fan: int = width) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) * fan**-0.5)

        self.embedding = drawn(outputs + 1, width)
        self.position = drawn(TOKENS, width)
        self.query = drawn(width, heads, head)
        self.key = drawn(width, heads, head)
        self.value = drawn(width, heads, head)
        self.out = drawn(heads, head, width)
        self.mlp_in = drawn(width, hidden)
        self.mlp_in_bias = nn.Parameter(torch.zeros(hidden))
        self.mlp_out = drawn(hidden, width)
        self.mlp_out_bias = nn.Parameter(torch.zeros(width))
        self.readout = drawn(width, outputs, fan=outputs)
        self.mask = torch.ones(TOKENS, TOKENS).tril().bool()
        self.scale = head**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [N, T] to logits [N, C] after the last."""
        h = self.embedding[x] + self.position
        kernels = (self.query, self.key, self.value)
        q, k, v = (torch.einsum("ntd,dhe->nhte", h, kernel) for kernel in kernels)
        scores = torch.einsum("nhqe,nhke->nhqk", q, k) * self.scale
        weights = scores.masked_fill(~self.mask, -1e10).softmax(dim=-1)
        read = torch.einsum("nhqk,nhke->nhqe", weights, v)
        h = h + torch.einsum("nhqe,hed->nqd", read, self.out)
        return self.after(h)[:, -1]

    def after(self, h: torch.Tensor) -> torch.Tensor:
        """What the attention leaves [..., width], through the MLP, to logits [..., C]."""
        inside = torch.einsum("...d,dm->...m", h, self.mlp_in) + self.mlp_in_bias
        h = h + torch.einsum("...m,md->...d", inside.relu(), self.mlp_out) + self.mlp_out_bias
        return torch.einsum("...d,dc->...c", h, self.readout)


class Last(Notebook):
    """The last position alone: it sees all, so there is no mask."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [N, T] to logits [N, C] after the last."""
        h = functional.embedding(x, self.embedding) + self.position
        k, v = (torch.einsum("ntd,dhe->nthe", h, kernel) for kernel in (self.key, self.value))
        q = torch.einsum("nd,dhe->nhe", h[:, -1], self.query)
        return self.read(h[:, -1], q, k, v)

    def read(
        self, last: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Logits [N, C] of the last position [N, width], its query, and all keys and values."""
        weights = (torch.einsum("nhe,nthe->nht", q, k) * self.scale).softmax(dim=-1)
        read = torch.einsum("nht,nthe->nhe", weights, v)
        return self.after(last + torch.einsum("nhe,hed->nd", read, self.out))


class Tables(Last):
    """What a token brings depends on it and its position alone: a table [T · V, ...] of each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [N, T] to logits [N, C] after the last."""
        h = self.embedding + self.position[:, None]
        rows = x + torch.arange(TOKENS) * len(self.embedding)
        k, v = (self.looked_up(rows, h, kernel) for kernel in (self.key, self.value))
        q = torch.einsum("vd,dhe->vhe", h[-1], self.query)
        return self.read(h[-1][x[:, -1]], q[x[:, -1]], k, v)

    @staticmethod
    def looked_up(rows: torch.Tensor, h: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """Rows [N, T] of the kernel's table of all h [T, V, width]: [N, T, heads, head]."""
        table = torch.einsum("tvd,dhe->tvhe", h, kernel)
        return functional.embedding(rows, table.reshape(-1, kernel[0].numel())).unflatten(
            -1, kernel.shape[1:]
        )


WAYS = {"notebook": Notebook, "last": Last, "tables": Tables}


def train(net: Notebook, x: torch.Tensor, y: torch.Tensor, steps: int) -> Trained:
    """Full batch; the losses stay tensors until the end."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1, (t + 1) / WARMUP))
    losses, started = [], ()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x).double(), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        started = started or clocks()
    wall, cpu = (now - then for now, then in zip(clocks(), started, strict=True))
    return Trained(torch.stack(losses).tolist(), wall, cpu)
