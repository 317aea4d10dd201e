"""Keys: how they are made of each other, and used up."""

from collections.abc import Sequence
from dataclasses import replace

from jaxnorm.diagnostics._lint.follower import At, Follower, handles, varying_axes
from jaxnorm.diagnostics._lint.noises import draw
from jaxnorm.diagnostics._lint.values import Value


@handles("random_bits")
def drawn(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """Random bits of a key, or of each of several; no bits at all where a function of ours says that it will use the key."""
    value, variable = f.plain(at, f.moved(at, values)), at.eqn.outvars[0]
    own = frozenset(range(at.eqn.invars[0].aval.ndim, variable.aval.ndim)) & varying_axes(variable.aval)
    return [replace(value, keys=frozenset(), draws=value.draws | {draw(f, at, values[0])}, varies=value.varies | own)]


@handles("rng_bit_generator", "random_gamma", "rng_uniform")
def generated(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """Random numbers, and what else there is, of a key."""
    place = draw(f, at, values[0])
    results = [f.plain(at, values, number) for number in range(len(at.eqn.outvars))]
    return [
        replace(value, keys=frozenset(), draws=value.draws | {place}, varies=varying_axes(variable.aval))
        for value, variable in zip(results, at.eqn.outvars, strict=True)
    ]


@handles("random_unwrap")
def words(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """The words of a key."""
    plain = f.plain(at, f.moved(at, values))
    f.words[plain.number] = next(iter(values[0].keys), values[0].number)
    return [replace(plain, keys=frozenset({f.words[plain.number]}), varies=plain.varies | {at.eqn.outvars[0].aval.ndim - 1})]


@handles("random_wrap", "random_clone")
def same_key(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A key of words: the same key, where these are all of its words."""
    same = f.words.get(values[0].number)
    keys = frozenset() if same is None else frozenset({same})
    return [replace(f.plain(at, f.moved(at, values)), keys=keys, draws=frozenset())]


@handles("random_seed", "random_fold_in")
def key_of(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A key of a number, or of another key and a number."""
    return [replace(f.plain(at, f.moved(at, values)), keys=frozenset(), draws=frozenset())]


@handles("random_split")
def keys_of(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """Several keys of one."""
    value = f.plain(at, f.moved(at, values))
    own = frozenset(range(at.eqn.invars[0].aval.ndim, at.eqn.outvars[0].aval.ndim))
    return [replace(value, keys=frozenset(), varies=(value.varies | own) & varying_axes(at.eqn.outvars[0].aval))]
