"""A mixture of experts: noise of the gates, without which their load has no gradient."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import gaussian_noise
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, dense, digits, fit, init_dense, largest
from jaxnorm.training import cross_entropy

EXPERTS, CHOSEN, WIDTH, WEIGHT = 8, 2, 16, 0.1


class Params(NamedTuple):
    """The gates and how much noise they have; the experts' two dense layers, stacked."""

    gates: Dense
    noise: Dense
    hidden: Dense
    output: Dense


class Gates(NamedTuple):
    """The weights of the experts, 0 of those not chosen, and the probability that another draw would choose each: `[B, E]`."""

    weights: jax.Array
    load: jax.Array


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters."""
    hidden, output = jax.random.split(key)
    stacked = [
        jax.vmap(partial(init_dense, fan_in=fan_in, fan_out=fan_out))(jax.random.split(key, EXPERTS))
        for key, fan_in, fan_out in ((hidden, 64, WIDTH), (output, WIDTH, 10))
    ]
    zero = Dense(jnp.zeros((64, EXPERTS)), jnp.zeros(EXPERTS))  # as in the publication: nothing but noise decides at first
    return Params(zero, zero, *stacked), ()


def gate(on: jax.Array, key: jax.Array | None, params: Params, x: jax.Array) -> Gates:
    """Returns the gates of examples; without a key none is noisy."""
    clean, std = dense(params.gates, x), jax.nn.softplus(dense(params.noise, x))
    noise = jnp.zeros_like(clean) if key is None else on[1] * std * gaussian_noise(key, jnp.zeros_like(clean), 1.0)
    scores = clean + noise
    highest, order = jax.lax.top_k(scores, CHOSEN + 1)
    chosen = jax.nn.one_hot(order[:, :CHOSEN], EXPERTS).sum(1) > 0
    # What a score must pass to be chosen, as the others are: the next one's of a chosen one, else the last chosen one's.
    needed = jnp.where(chosen, highest[:, CHOSEN:], highest[:, CHOSEN - 1 : CHOSEN])
    load = jnp.where(on[1] > 0, jax.scipy.stats.norm.cdf((clean - needed) / std), chosen)
    return Gates(jax.nn.softmax(jnp.where(chosen, scores, -jnp.inf)), load)


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
    """Returns logits, and how uneven the load of the experts is: its variance over its squared mean."""
    gates = gate(on, key if train else None, params, x)
    hidden = jax.nn.relu(jnp.einsum("bc,ech->ebh", x, params.hidden.kernel) + params.hidden.bias[:, None])
    outputs = jnp.einsum("ebh,ehk->ebk", hidden, params.output.kernel) + params.output.bias[:, None]
    load = gates.load.mean(0)
    return (jnp.einsum("be,ebk->bk", gates.weights, outputs), load.var() / load.mean() ** 2), stats


def loss(outputs: tuple[jax.Array, jax.Array], labels: jax.Array) -> jax.Array:
    """Returns cross entropies, with the load's unevenness."""
    return cross_entropy(outputs[0], labels) + WEIGHT * outputs[1]


def run(key: jax.Array, on: jax.Array, steps: int) -> dict[str, jax.Array]:
    """Trains a network, and returns how many experts share the test set: e to the entropy of their loads, over their number."""
    data_key, init_key, train_key, own_key = jax.random.split(key, 4)
    draw, (x, _) = digits(data_key, 1000, 64, batch_size=64)
    state = fit(partial(apply, on), train_key, init(init_key), draw, steps, 1e-2, loss=loss)
    weights = gate(on, None, state.params, x).weights
    load = jnp.mean(weights > 0, 0) / CHOSEN
    entropy = -jnp.sum(load * jnp.log(jnp.maximum(load, 1e-9)))
    return {"score": jnp.exp(entropy) / EXPERTS, "invariant": invariant(own_key, state.params, state.stats, x)}


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far an example's weights do not sum to 1, or the number of those above 0 is not that of chosen experts."""
    weights = gate(jnp.array([0, 1]), key, params, x).weights
    return largest(jnp.abs(weights.sum(1) - 1) + jnp.abs(jnp.sum(weights > 0, 1) - CHOSEN))


MODEL = Model(
    layers={"noise": "noisy gates"},
    role="noise makes the choice of experts a matter of probability, whose gradient evens out their load",
    source=(
        'Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean, "Outrageously large neural networks: the sparsely-gated '
        'mixture-of-experts layer", ICLR 2017, https://arxiv.org/abs/1701.06538'
    ),
    score="experts in use",
    init=init,
    apply=apply,
    run=run,
    steps=300,
    runs={"with": (0, 1), "noise": (0, 0)},
)
