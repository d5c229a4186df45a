"""Hessian products, in gradients each and beside PyTorch's double backward.

fc-tanh 3072-200-200-10 on 5,000 images, float32, in blocks of 4 and alone, with and without
microbatches (theory: 1.09 gradients beside the linearisation); then square nets n-n-n-n, where all
layers cost the same, against what their matmuls count: 14/8 gradients for three layers.
PyTorch's products are backward passes through the gradient's graph: its time counts for a block as
lmech's linearisation does. Beside that, one product where the graph is there from before.
"""

from collections.abc import Iterator

from lmech.numerics.precision import numerics
from scripts.bench import fc
from scripts.bench.asked import Asked, wanted
from scripts.bench.tables import Cell, Table, Target
from scripts.bench.timing import same_threads, turns

BLOCKS = ((4, None, 1.3), (1, None, None), (4, 500, 1.3), (1, 500, 1.6))
LIMITS = (
    "both multiply the same matrices, 1.09 gradients a vector: it is XLA's products against MKL's, "
    "which the table of the steps has side by side"
)
SPLIT = (
    "the gradient multiplies all rows at once, and δᵀx for it, which is the faster (numerics.matmul"
    "); 500 rows would not repay the transposition, so the microbatches multiply xᵀδ"
)
TURNED = (
    "each product transposes what the first layer's gives, 3072 × 200 numbers, and how long that "
    "takes depends on where they lie (numerics.matmul): it differs from round to round"
)
SQUARE = 1.75
"""Gradients that a product's matmuls count, three square layers."""


def measure(asked: Asked) -> Iterator[Table]:
    """fc-tanh, then square nets."""
    same_threads(asked.threads)
    with numerics():
        yield beside(asked)
        yield squares(asked)


def beside(asked: Asked) -> Table:
    """Lmech's and PyTorch's products of fc-tanh."""
    data, torch = fc.images(asked.size(fc.EXAMPLES, 1000)), wanted("torch")
    rows: list[list[Cell]] = []
    targets = []
    for vectors, microbatch, bound in BLOCKS:
        gradient, product = fc.products((fc.WIDTH, fc.WIDTH), "tanh", data, vectors, microbatch)
        calls = {"gradient": gradient, "product": product}
        if torch is not None:
            side = fc.torch_side(torch, data, 1)
            calls |= {"PyTorch": side.products(vectors), "kept": side.kept}
            calls |= {"PyTorch's gradient": side.gradient}
        timed = turns(calls, asked.repetitions)
        name = f"block of {vectors}, microbatch {microbatch}"
        gradients = timed.ratio("product", "gradient", 1 / vectors)[0]
        each = timed.middle("product")[0] / vectors * 1e3
        row: list[Cell] = [name, each, gradients]
        if torch is None:
            rows.append([*row, "skipped: pip install torch", None, None, None])
        else:
            theirs = timed.ratio("PyTorch", "product")[0]
            kept = timed.ratio("kept", "product", vectors)[0]
            own = timed.ratio("PyTorch", "PyTorch's gradient", 1 / vectors)[0]
            rows.append([*row, theirs, own, kept, timed.ratio("kept", "PyTorch's gradient")[0]])
        if bound is not None:
            what = f"gradients a product, {name}"
            targets.append(Target(what, gradients, "≤", bound, SPLIT if microbatch else TURNED))
        if torch is not None and microbatch is None:
            what = f"PyTorch's product over one of lmech's, {name}"
            targets.append(Target(what, theirs, "≥", 1.3, LIMITS))
            what = f"the same, PyTorch's graph kept from before, {name}"
            targets.append(Target(what, kept, "≥", 1.3, LIMITS))
    return Table(
        "fc-tanh",
        (
            *("a product", "wall ms", "in lmech's gradients"),
            *("PyTorch's over it", "PyTorch's in its own gradients"),
            *("graph kept: over it", "in its own gradients"),
        ),
        rows,
        targets=tuple(targets),
    )


def squares(asked: Asked) -> Table:
    """Nets with three layers of one size."""
    rows: list[list[Cell]] = []
    targets = []
    for width in asked.size((512, 1024), (32,)):
        data = fc.images(asked.size(2000, 100), width, width)
        for activation in ("relu", "tanh", "gelu", "silu", "erf"):
            gradient, product = fc.products((width, width), activation, data, 4, None)
            timed = turns({"gradient": gradient, "product": product}, asked.repetitions)
            found = timed.ratio("product", "gradient", 1 / 4 / SQUARE)[0]
            rows.append([width, activation, found])
            if activation in ("relu", "tanh"):
                what = f"product over its matmuls' count, n = {width}, {activation}"
                targets.append(Target(what, found, "≤", 1.25))
    return Table(
        "n-n-n-n nets, blocks of 4",
        ("n", "activation", "product over the matmuls' count of 1.75 gradients"),
        rows,
        targets=tuple(targets),
    )
