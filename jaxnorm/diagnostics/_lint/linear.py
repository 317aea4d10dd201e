"""Linear layers: products and convolutions."""

from collections.abc import Sequence
from dataclasses import replace

from jaxnorm.diagnostics._lint.axes import moves
from jaxnorm.diagnostics._lint.follower import At, Follower, handles
from jaxnorm.diagnostics._lint.noises import note
from jaxnorm.diagnostics._lint.reducing import reduction
from jaxnorm.diagnostics._lint.values import Arrival, Value


@handles("cholesky", "qr", "lu", "eigh", "eig", "svd", "triangular_solve", "tridiagonal_solve", "householder_product")
def matrices(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """What is computed of whole matrices."""
    results = []
    for number, variable in enumerate(at.eqn.outvars):
        value = f.plain(at, f.moved(at, values), number)
        inside = frozenset(range(variable.aval.ndim))
        results.append(replace(value, examples=value.examples & inside, varies=value.varies & inside))
    return results


@handles("dot_general", "conv_general_dilated")
def product(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A product, summed over axes. Over the examples it is a statistic of them."""
    plain = f.plain(at, f.moved(at, values))
    data = [value for value in values if f.is_data(value)]
    if not data:
        return [plain]
    noise = {arrival._replace(linear=True, whole=False) for arrival in plain.noise}
    random = [value for value in values if value.draws and value.inputs and not f.is_data(value)]  # a constant matrix is no noise
    if random:
        note(f, at, "factor", "weights", random, data, values)
        noise.add(Arrival(at.place, True, False))
    value = replace(plain, noise=frozenset(noise), draws=frozenset())
    every = moves(at.eqn) or []
    for number, operand in enumerate(values):
        gone = frozenset(axis for axis, to in enumerate(every[number]) if not to)
        if gone & operand.examples and at.eqn.primitive.name == "dot_general":
            alike = len(data) == 2 and data[0].base == data[1].base
            source = replace(operand, squared=operand.squared or alike)
            return [reduction(f, at, source, gone, at.eqn.invars[number], value)]
    return [value]
