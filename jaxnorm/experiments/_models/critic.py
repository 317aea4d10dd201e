"""The critic of a generative adversarial network: spectral norm bounds its slope."""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnorm import init_spectral_norm, spectral_norm
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, dense, init_dense, largest

MODES, STD, LATENT, WIDTH, BATCH, CRITIC_STEPS = 8, 0.1, 4, 64, 64, 5
CENTERS = 2 * jnp.stack([jnp.cos(2 * jnp.pi * jnp.arange(MODES) / MODES), jnp.sin(2 * jnp.pi * jnp.arange(MODES) / MODES)], 1)
Params = list[Dense]


def layers(key: jax.Array, *sizes: int) -> Params:
    """Returns the dense layers of a perceptron."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [init_dense(key, *size) for key, size in zip(keys, pairwise(sizes), strict=True)]


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns the critic's parameters and the states of its norms."""
    own_key, *keys = jax.random.split(key, 4)
    params = layers(own_key, 2, WIDTH, WIDTH, 1)
    return params, [init_spectral_norm(key, len(layer.bias)) for key, layer in zip(keys, params, strict=True)]


def apply(on: jax.Array, key: Any, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns what the critic says of points, `[B, 1]`."""
    new = []
    for number, (layer, state) in enumerate(zip(params, stats, strict=True)):
        kernel, state = spectral_norm(state, layer.kernel, train=train)
        x = dense(layer._replace(kernel=jnp.where(on[0] > 0, kernel, layer.kernel)), x)
        x = jax.nn.relu(x) if number < len(params) - 1 else x
        new.append(state)
    return x, new


def generate(params: Params, latent: jax.Array) -> jax.Array:
    """Returns points, `[B, 2]`."""
    for layer in params[:-1]:
        latent = jax.nn.relu(dense(layer, latent))
    return dense(params[-1], latent)


class State(NamedTuple):
    """Both networks, the norms of the critic, and the optimizer of each."""

    critic: Any
    stats: Any
    generator: Any
    optimizers: tuple[Any, Any]


def run(key: jax.Array, on: jax.Array, steps: int) -> dict[str, jax.Array]:
    """Trains both in turn by the hinge loss; the score is the overlap of samples and ring, mode by mode."""
    critic_key, generator_key, train_key, sample_key = jax.random.split(key, 4)
    optimizer = optax.flatten(optax.adam(5e-3, b1=0.5))
    critic, stats = init(critic_key)
    generator = layers(generator_key, LATENT, WIDTH, WIDTH, 2)

    def criticize(generator: Params, carry: Any, key: jax.Array) -> tuple[Any, None]:
        (critic, stats, opt_state), (mode_key, near_key, latent_key) = carry, jax.random.split(key, 3)
        real = CENTERS[jax.random.randint(mode_key, (BATCH,), 0, MODES)] + STD * jax.random.normal(near_key, (BATCH, 2))
        points = jnp.concatenate([real, generate(generator, jax.random.normal(latent_key, (BATCH, LATENT)))])

        def hinge(critic: Params) -> tuple[jax.Array, Any]:
            said, new = apply(on, None, critic, stats, points, train=True)
            return jax.nn.relu(1 - said[:BATCH]).mean() + jax.nn.relu(1 + said[BATCH:]).mean(), new

        grads, stats = jax.grad(hinge, has_aux=True)(critic)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(critic, updates), stats, opt_state), None

    def step(state: State, key: jax.Array) -> tuple[State, None]:
        critic_key, latent_key = jax.random.split(key)
        keys = jax.random.split(critic_key, CRITIC_STEPS)
        carry = state.critic, state.stats, state.optimizers[0]
        (critic, stats, first), _ = jax.lax.scan(partial(criticize, state.generator), carry, keys)
        latent = jax.random.normal(latent_key, (BATCH, LATENT))
        fool = jax.grad(lambda generator: -apply(on, None, critic, stats, generate(generator, latent), train=False)[0].mean())
        updates, second = optimizer.update(fool(state.generator), state.optimizers[1])
        return State(critic, stats, optax.apply_updates(state.generator, updates), (first, second)), None

    state = State(critic, stats, generator, (optimizer.init(critic), optimizer.init(generator)))
    state, _ = jax.lax.scan(step, state, jax.random.split(train_key, steps))
    samples = generate(state.generator, jax.random.normal(sample_key, (2000, LATENT)))
    near = jnp.linalg.norm(samples[:, None] - CENTERS, axis=-1) < 3 * STD
    overlap = jnp.sum(jnp.minimum(near.mean(0), 1 / MODES))
    return {"score": overlap, "invariant": invariant(sample_key, state.critic, state.stats, samples)}


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns by how much the critic's slope is above 1 anywhere on samples: its Lipschitz constant is at most 1."""
    stats, _ = jax.lax.scan(
        lambda stats, _: (apply(jnp.array([1, 0]), None, params, stats, x, train=True)[1], None), stats, length=50
    )
    slopes = jax.vmap(jax.grad(lambda point: apply(jnp.array([1, 0]), None, params, stats, point[None], train=False)[0][0, 0]))(x)
    return jax.nn.relu(largest(jnp.linalg.norm(slopes, axis=1)) - 1)


MODEL = Model(
    layers={"norm": "spectral norm"},
    role="spectral norm holds the critic's slope at 1 or below, so that it teaches the generator everywhere; it is of later work",
    source=(
        'Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio, "Generative adversarial nets", NIPS 2014, '
        "https://arxiv.org/abs/1406.2661"
    ),
    score="samples on the ring",
    init=init,
    apply=apply,
    run=run,
    steps=1500,
    runs={"with": (1, 0), "norm": (0, 0)},
)
