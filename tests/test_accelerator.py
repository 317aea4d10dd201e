"""Every layer on an accelerator: what the CPU computes, and nothing sent to the host.

Runs on the first device of jax's default platform; it needs jax, NumPy, pytest and what jaxnorm imports, no more, and the package
need not be installed:

    PYTHONPATH=. python -m pytest -o addopts= -W default -p no:cacheprovider -m accelerator tests/test_accelerator.py

With `--accelerator cpu` a second CPU device takes the accelerator's place, which tries the tests themselves.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Arguments, Case
from promises import assert_equal_but_for_rounding, new_key, rows, varied_and_rest

from jaxnorm._bits import random_integers

pytestmark = pytest.mark.accelerator

_TO_THE_HOST = re.compile(r"\b(?:infeed|outfeed|send|recv|send-done|recv-done)\(|custom_call_target=\"[^\"]*callback[^\"]*\"")
_COPIES = 64  # of the batch: enough elements that a reduction takes several blocks of threads
_ROUNDING = 1e-5  # of sums of some thousand numbers in float32, in another order


class Outcome(NamedTuple):
    """What one step gives: the output, the new state, and the gradient for every argument that has one."""

    y: jax.Array
    state: Any
    gradient: Arguments


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> jax.Device:
    if request.config.option.accelerator == "cpu":
        return jax.devices("cpu")[1]
    found = jax.devices()[0]
    if found.platform == "cpu":
        pytest.skip("jax finds no accelerator; --accelerator cpu tries these tests on the CPU")
    return found


@pytest.fixture(autouse=True)
def _data_are_made_on_the_cpu() -> Iterator[None]:
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def to_the_host(program: jax.stages.Compiled) -> list[str]:
    """What a compiled program sends to the host or waits for from it."""
    text = program.as_text()
    assert text is not None
    return _TO_THE_HOST.findall(text)


def step(case: Case, key: jax.Array, varied: Arguments, rest: Arguments) -> Outcome:
    y, pullback, state = jax.vjp(lambda varied: case(key, {**rest, **varied}), varied, has_aux=True)
    weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return Outcome(y, state, *pullback(weights))


def arguments_on(device: jax.Device, case: Case, position: int) -> tuple[jax.Array, Arguments, Arguments]:
    """The key and the arguments, with the lowest, the usual or the highest amounts and a larger batch, on a device."""
    amounts = {name: values[position] for name, values in case.amounts.items()}
    arguments = jax.tree.map(jnp.asarray, {**case.arguments(), **amounts})
    for name in case.batched:
        arguments[name] = jnp.concatenate([arguments[name]] * _COPIES)
    return jax.device_put((new_key(), *varied_and_rest(arguments)), device)


@rows(CASES)
def test_the_accelerator_computes_what_the_cpu_computes(case: Case, device: jax.Device) -> None:
    """Pitfall 27."""
    cpu = jax.devices("cpu")[0]
    run = jax.jit(functools.partial(step, case))
    there, here = (run.lower(*arguments_on(place, case, 1)).compile() for place in (device, cpu))
    assert not to_the_host(there)
    for position in range(3):
        arguments = arguments_on(device, case, position)
        with jax.transfer_guard("disallow"):
            outcome = jax.block_until_ready(there(*arguments))
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(outcome))
        got, expected = jax.device_get((outcome, here(*arguments_on(cpu, case, position))))
        assert_equal_but_for_rounding(got, expected, _ROUNDING)
        if case.is_random:  # the same draws, in both passes
            np.testing.assert_array_equal(got.y == 0, expected.y == 0)
            np.testing.assert_array_equal(got.gradient["x"] == 0, expected.gradient["x"] == 0)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("shape", [(1000, 3), (7, 5, 64)], ids=str)
@pytest.mark.parametrize("show_blocks", [True, False])
def test_the_accelerator_draws_the_bits_of_the_cpu(
    bits: int, shape: tuple[int, ...], show_blocks: bool, device: jax.Device
) -> None:
    draw = jax.jit(lambda key: random_integers(key, shape, bits, show_blocks=show_blocks))
    got, expected = (np.asarray(draw(jax.device_put(new_key(), place))) for place in (device, jax.devices("cpu")[0]))
    np.testing.assert_array_equal(got, expected)


def test_a_call_of_the_host_is_seen(device: jax.Device) -> None:
    x = jax.device_put(jnp.ones(3), device)
    calls = jax.jit(lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x))
    assert to_the_host(calls.lower(x).compile())
    assert not to_the_host(jax.jit(jnp.sin).lower(x).compile())
