"""What a function computes, as JAX traces it."""

from collections.abc import Iterator

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def equations(function, *arguments) -> Iterator[core.JaxprEqn]:
    """All equations that the outputs of `function` need, those inside loops and calls as well, each once."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    inside = [jaxpr]
    while inside:
        for equation in inside.pop().eqns:
            yield equation
            inside += core.jaxprs_in_params(equation.params)
