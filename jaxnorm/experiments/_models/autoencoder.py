"""A variational autoencoder: batch norm of its layers, and the noise of its code."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import batch_norm, gaussian_noise, init_batch_norm
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, dense, digits, fit, init_dense, largest, taken

WIDTH, CODE, LAYERS, PRECISION = 64, 8, 3, 4.0


class Params(NamedTuple):
    """Dense layers of the encoder and of the decoder, and the norms of the hidden ones."""

    encoder: list[Dense]
    decoder: list[Dense]
    norms: Any


class Coded(NamedTuple):
    """An image as the decoder gives it, and the mean and the logarithm of the variance of its code."""

    image: jax.Array
    mean: jax.Array
    log_var: jax.Array


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters and statistics."""
    hidden = [WIDTH] * LAYERS
    encoder, decoder = ([64, *hidden, 2 * CODE], [CODE, *hidden, 64])
    made = [
        [init_dense(jax.random.fold_in(key, 10 * side + i), sizes[i], sizes[i + 1]) for i in range(LAYERS + 1)]
        for side, sizes in enumerate((encoder, decoder))
    ]
    norm, stats = init_batch_norm(WIDTH)
    return Params(made[0], made[1], [[norm] * LAYERS] * 2), [[stats] * LAYERS] * 2


def hidden(on: jax.Array, layers: list[Dense], norms: Any, stats: Any, x: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Runs dense layers, batch norms and ReLUs, and a last dense layer."""
    new = []
    for layer, norm, running in zip(layers, norms, stats, strict=False):
        y = dense(layer, x)
        normed, running = batch_norm(norm, running, y, train=train, momentum=0.9)
        x = jax.nn.relu(taken(on[0], normed, y))
        new.append(running)
    return dense(layers[-1], x), new


def code(key: jax.Array, mean: jax.Array, log_var: jax.Array, amount: jax.Array | float = 1.0) -> jax.Array:
    """Draws codes, `mean + std n`, so that gradients flow into mean and variance."""
    return mean + jnp.exp(log_var / 2) * gaussian_noise(key, jnp.zeros_like(mean), amount)


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[Coded, Any]:
    """Returns images of noisy codes; in inference of their means."""
    found, first = hidden(on, params.encoder, params.norms[0], stats[0], x, train)
    mean, log_var = found[:, :CODE], jnp.clip(found[:, CODE:], -10, 10)
    drawn = code(key, mean, log_var, 1.0 * on[1]) if train else mean
    image, second = hidden(on, params.decoder, params.norms[1], stats[1], drawn, train)
    return Coded(image, mean, log_var), [first, second]


def divergence(coded: Coded) -> jax.Array:
    """Returns that of each code from a standard normal one, in nats."""
    return 0.5 * jnp.sum(jnp.exp(coded.log_var) + coded.mean**2 - 1 - coded.log_var, -1)


def loss(coded: Coded, x: jax.Array) -> jax.Array:
    """Returns minus the evidence's lower bound, but for a constant."""
    return 0.5 * PRECISION * jnp.sum((coded.image - x) ** 2, -1) + divergence(coded)


def run(key: jax.Array, on: jax.Array, steps: int) -> dict[str, jax.Array]:
    """Trains a network; the score is the share of the test pixels' variance that an image of a noisy code explains."""
    data_key, init_key, train_key, own_key = jax.random.split(key, 4)
    draw, (x, _) = digits(data_key, 1000, 64, batch_size=64)

    def images(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, _ = draw(key)
        return x, x

    state = fit(partial(apply, on), train_key, init(init_key), images, steps, 3e-3, loss=loss)
    score_key, own_key = jax.random.split(own_key)
    coded, _ = apply(on, own_key, state.params, state.stats, x, train=False)
    image, _ = hidden(
        on, state.params.decoder, state.params.norms[1], state.stats[1], code(score_key, coded.mean, coded.log_var), False
    )
    explained = jax.nn.relu(1 - jnp.mean((image - x) ** 2) / jnp.mean((x - x.mean(0)) ** 2))
    return {"score": explained, "invariant": invariant(own_key, state.params, state.stats, x)}


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far a divergence is below 0, or noise of codes from mean 0 and variance 1."""
    coded, _ = apply(jnp.array([1, 1]), key, params, stats, x, train=False)
    drawn = code(key, *jnp.zeros((2, 1_000_000)))
    return largest(jnp.array([jax.nn.relu(-divergence(coded).min()), jnp.abs(drawn.mean()), jnp.abs(drawn.var() - 1)]))


MODEL = Model(
    layers={"norm": "batch norm", "noise": "noise of the code"},
    role="noise of the code makes codes near it mean the same; batch norm, of later work, helps its layers train",
    source='Kingma, Welling, "Auto-encoding variational Bayes", ICLR 2014, https://arxiv.org/abs/1312.6114',
    score="variance explained",
    init=init,
    apply=apply,
    run=run,
    steps=400,
    runs={"with": (1, 1), "norm": (0, 1), "noise": (1, 0)},
)
