"""What a function computes, as JAX traces it."""

from collections.abc import Iterator

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def equations(function, *arguments, needed: bool = False) -> Iterator[core.JaxprEqn]:
    """All equations, those inside loops and calls as well, each once; or those alone that the outputs need."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    if needed:
        jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    inside = [jaxpr]
    while inside:
        for equation in inside.pop().eqns:
            yield equation
            inside += core.jaxprs_in_params(equation.params)
