"""Control flow that stays cheap when members run side by side."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Carry = TypeVar("Carry")


def when(wanted: jax.Array, f: Callable[[Carry], Carry], carry: Carry) -> Carry:
    """``f(carry)`` where ``wanted``, else ``carry``.

    A ``lax.cond`` becomes a select under ``vmap``: all members pay for both branches, always. A
    loop of at most one round runs only if some member wants it.
    """
    _, carry = lax.while_loop(
        lambda loop: loop[0], lambda loop: (jnp.zeros_like(loop[0]), f(loop[1])), (wanted, carry)
    )
    return carry
