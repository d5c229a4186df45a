"""What a program's functions are compiled to: jitted over a leading axis of members.

A function of one member (``member``'s) becomes one of all lanes: in turn, side by side, one by one,
or spread over devices. Run this inside ``numerics.precision.numerics()``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmech import member
from lmech.datasets import Data
from lmech.inputs import Inputs
from lmech.member import Carry, Feed, Program
from lmech.numerics import sharing, trees
from lmech.observables import Memory
from lmech.problem import Params

AXIS = "members"


def _mesh(program: Program) -> Mesh | None:
    """The devices that share the lanes, or the examples; None for one."""
    if program.spread > 1:
        return sharing.mesh(program.spread, sharing.EXAMPLES)
    return sharing.mesh(program.devices, AXIS) if program.devices > 1 else None


# What runs once is not worth the compiler's best. A CPU's programs compile in half to two thirds of
# the time without XLA's fusion emitters (what runs often would be up to a quarter slower), and the
# draw of the weights, which is the first to be compiled, in a fifth without optimizations either.
ONCE = {"xla_cpu_use_fusion_emitters": False}
DRAW = {**ONCE, "xla_backend_optimization_level": 0}


def known(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Those of the compiler's options that this XLA has; None for none."""
    return {name: value for name, value in (options or {}).items() if _known(name, value)} or None


@lru_cache
def _known(option: str, value: Any) -> bool:
    """Whether this XLA has the compiler's option: they come and go with its versions."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _over_members(
    f: Callable[..., Any], program: Program, name: str, options: dict[str, Any] | None = None
) -> Any:
    """Jit ``f(*carried, *fixed, *shared)`` over a leading member axis of ``carried`` and ``fixed``.

    ``carried`` is donated. ``map`` takes one member after another and gives each, bit for bit,
    what it would get alone (CPU); ``vmap`` takes them side by side; ``loop`` calls a program of one
    member for each, to debug. On several devices each has its share of the lanes, or of the
    examples, and then all of what is returned. ``name`` is the program's name in profiles and in
    the count of compilations.
    """
    mesh = _mesh(program)

    def one(carried: tuple, fixed: tuple, *shared: Any) -> Any:
        return f(*carried, *fixed, *shared)

    def batched(carried: tuple, fixed: tuple, *shared: Any) -> Any:
        if program.mode == "vmap":
            return jax.vmap(one, in_axes=(0, 0, *(None for _ in shared)))(carried, fixed, *shared)
        return lax.map(lambda lane: one(*lane, *shared), (carried, fixed))

    def sharded(carried: tuple, fixed: tuple, *shared: Any) -> Any:
        own = PartitionSpec(AXIS)
        specs = (own, own, *(PartitionSpec() for _ in shared))
        share = jax.shard_map(batched, mesh=mesh, in_specs=specs, out_specs=own, check_vma=False)
        return share(carried, fixed, *shared)

    apart = mesh is not None and program.devices > 1
    function = one if program.mode == "loop" else sharded if apart else batched
    function.__name__ = name
    everywhere = {"out_shardings": placement(program)} if program.spread > 1 else {}
    jitted = jax.jit(function, donate_argnums=0, compiler_options=known(options), **everywhere)
    return partial(_one_by_one, jitted) if program.mode == "loop" else jitted


def _one_by_one(f: Callable[..., Any], carried: tuple, fixed: tuple, *shared: Any) -> Any:
    count = jax.tree.leaves((carried, fixed))[0].shape[0]
    lanes = [f(*trees.take((carried, fixed), lane), *shared) for lane in range(count)]
    return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *lanes)


class Compiled(NamedTuple):
    """A program's jitted functions over the members, one of each per observable."""

    start: Any
    rate_unit: Any
    """None where learning rates are absolute."""
    memory: Mapping[str, Any]
    measure: Mapping[str, Any]
    chunk: Any


TRAINING_PROGRAM = "train_chunk"
# A compiled program with a few observables is some 1,200 memory maps, of which Linux allows a
# process 65,530: the next one kills it. Batches of one program follow each other.
KEPT = 12


@lru_cache(maxsize=KEPT)
def compiled(program: Program) -> Compiled:
    """Jit the program's functions, once a program (nothing compiles before the first call)."""

    def over(
        f: Callable[..., Any], name: str, options: dict[str, Any] | None = None
    ) -> Callable[..., Any]:
        return _over_members(f, program, name, options)

    def measure(name: str, every: int) -> Callable[..., Any]:
        """A cadence of 1 is measured inside the chunk, and here at kept weights alone."""
        options = ONCE if every == 1 else None
        return over(partial(member.measure, program, name), f"measure_{name}", options)

    unit = program.rate_unit
    return Compiled(
        start=over(partial(member.start, program), "start", DRAW),
        rate_unit=unit and over(partial(member.rate_unit, program, unit), "rate_unit", ONCE),
        memory={
            name: over(partial(member.memory, program, name), f"init_{name}", ONCE)
            for name in program.observables
        },
        measure={name: measure(name, every) for name, every in program.every.items()},
        chunk=over(partial(member.chunk, program), TRAINING_PROGRAM),
    )


def forget() -> None:
    """Drop the compiled programs of this process; those on disk stay."""
    compiled.cache_clear()
    on_one.cache_clear()
    jax.clear_caches()


@lru_cache(maxsize=KEPT)
def on_one(program: Program) -> Program:
    """The program as one function on one device, to be looked at rather than run."""
    if program.mode != "loop" and program.devices == program.spread == 1:
        return program
    return replace(program, mode="vmap" if program.mode == "vmap" else "map", devices=1, spread=1)


def state_shapes(
    program: Program, inputs: Inputs, data: Data, feed: Feed
) -> tuple[Carry, dict[str, Memory]]:
    """Shapes of the members' state and memories; ``feed`` is any step's, [M, …]."""
    run = compiled(on_one(program))
    carry = jax.eval_shape(run.start, (), (inputs, None))
    if run.rate_unit:
        unit = jax.eval_shape(run.rate_unit, (), (inputs, carry, feed), data)
        carry = carry._replace(unit=unit)
    memories = {
        name: jax.eval_shape(f, (), (inputs, carry, feed), data) for name, f in run.memory.items()
    }
    return carry, memories


def argument_shapes(
    program: Program,
    inputs: Inputs,
    data: Data,
    feed: Feed,
    shapes: tuple[Carry, dict[str, Memory]],
) -> dict[str, tuple[Any, ...]]:
    """Shapes of the arguments of the program's functions, by name; ``shapes``: ``state_shapes``'s.

    ``feed`` is any step's, [M, …].
    """
    carry, memories = shapes
    inside = {name: memory for name, memory in memories.items() if program.every[name] == 1}
    seen = (inputs, carry, feed)

    def chunk(a: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(a), program.capacity, *a.shape[1:]), a.dtype)

    steps = (inputs, jax.tree.map(chunk, feed))
    return {
        "start": ((), (inputs, None)),
        "rate_unit": ((), (inputs, carry._replace(unit=None), feed), data),
        TRAINING_PROGRAM: ((carry, inside), steps, 1, data),
        **{f"init_{n}": ((), seen, data) for n in memories},
        **{f"measure_{n}": ((m,), seen, True, True, data) for n, m in memories.items()},
    }


def lowerings(program: Program, arguments: Mapping[str, tuple]) -> dict[str, Callable[[], Any]]:
    """By name, what lowers each of the program's functions at ``argument_shapes``."""
    run = compiled(on_one(program))
    functions = {
        "start": run.start,
        TRAINING_PROGRAM: run.chunk,
        **{f"init_{n}": f for n, f in run.memory.items()},
        **{f"measure_{n}": f for n, f in run.measure.items()},
        **({"rate_unit": run.rate_unit} if run.rate_unit else {}),
    }
    return {name: partial(f.lower, *arguments[name]) for name, f in functions.items()}


def initial_weights(program: Program, inputs: Inputs, whole: Params | None = None) -> Params:
    """What the members train [M, …] at their start (``whole`` weights, or draws), on the host."""
    if whole is not None and program.subspace is None:
        return whole
    run = compiled(on_one(program))
    return jax.device_get(run.start((), (inputs, whole)).params)


def whole_weights(program: Program, inputs: Inputs) -> Params:
    """The members' own draws [M, …], on the host: in a subspace those that it goes through."""
    return initial_weights(replace(program, subspace=None), inputs)


def placement(program: Program, *axes: str) -> Any:
    """Where arrays go whose leading axes are spread over the devices; None: as usual.

    Where devices share the examples, each has all of every array.
    """
    mesh = _mesh(program)
    own = axes if program.devices > 1 else ()
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(*own))
