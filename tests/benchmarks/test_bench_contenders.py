"""The contenders of every row do the same work: the same results where they are deterministic, the same kind where not."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.benchmarks import _networks, _torch_resnet
from jaxnorm.benchmarks._cases import BASELINE, OURS, PEER, contenders, make_problem
from jaxnorm.benchmarks._layer import RATE
from jaxnorm.benchmarks._rows import Case, Row, row_named

SHAPE = (8, 2, 3, 4)  # of different sizes, so that no axis is taken for another
later = functools.partial(pytest.param, marks=pytest.mark.slow)
DETERMINISTIC = (
    "batch_norm",
    later("batch_norm_inference"),
    later("batch_norm_relu"),
    later("batch_norm_masked"),
    "batch_norm_channels_first",
    later("sync_batch_norm"),
    "layer_norm",
)
RANDOM = ("dropout", later("gaussian_dropout"), later("uniform_dropout"))

# The libraries warn of things that are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def results(row: Row, dtype: str) -> dict[str, tuple[str, list[np.ndarray]]]:
    """Role and results of every contender: y, and where there are gradients that of x and those of the parameters."""
    problem = make_problem(row, Case(SHAPE, dtype, row.devices[-1] if row.devices else None))
    found = {}
    for name, role, build in contenders(row):
        program = row.kind.work(build, problem)
        if program is not None:
            output = program.run()
            program.wait(output)
            y, *rest = output if isinstance(output, tuple) else (output,)
            params, dx = rest[0] if row.kind.title == "forward and backward" else ((), ())
            found[name] = role, [to_numpy(a) for a in (y, *jax.tree.leaves((dx, params)))]
    return found


def to_numpy(a: Any) -> np.ndarray:
    """Returns a result with the channels on the last axis, a parameter as a vector."""
    array = np.asarray(jnp.asarray(a, jnp.float32) if isinstance(a, jax.Array) else a.detach().float().cpu())
    if array.size < np.prod(SHAPE):
        return array.ravel()
    return array if array.shape == SHAPE else np.moveaxis(array, 1, -1)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), pytest.param("bfloat16", 0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_contenders_agree(name: str, dtype: str, tolerance: float) -> None:
    found = results(row_named(name), dtype)
    assert "flax linen" in peers(found)
    assert_agree(found, tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), pytest.param("bfloat16", 0.1, marks=pytest.mark.slow)])
def test_batch_renorm_agrees_with_keras(dtype: str, tolerance: float) -> None:
    pytest.importorskip("keras", reason="of the libraries beside ours keras alone has batch renormalization")
    found = results(row_named("batch_renorm"), dtype)
    assert "keras" in peers(found)
    assert_agree(found, tolerance)


def peers(found: dict[str, tuple[str, list[np.ndarray]]]) -> dict[str, list[np.ndarray]]:
    return {contender: arrays for contender, (role, arrays) in found.items() if role == PEER}


def assert_agree(found: dict[str, tuple[str, list[np.ndarray]]], tolerance: float) -> None:
    ours = next(arrays for role, arrays in found.values() if role == OURS)
    for contender, arrays in peers(found).items():
        assert len(arrays) == len(ours), contender
        for number, array in enumerate(arrays):
            # scale and bias come in either order
            possible = ours[number : number + 1] if number < 2 else ours[2:]
            assert any(np.allclose(array, one, tolerance, tolerance) for one in possible), f"{contender}, result {number}"


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RANDOM)
def test_random_contenders_multiply_by_noise_of_one_kind(name: str, dtype: str) -> None:
    """The same noise forward and backward, of mean 1, and as far from it as ours."""
    row = row_named(name)
    problem = make_problem(row, Case(SHAPE, dtype, None))
    x, cotangent = to_numpy(problem.x), to_numpy(problem.cotangent)
    deviations = {}
    for contender, (role, (y, dx)) in results(row, dtype).items():
        noise = y / x
        np.testing.assert_allclose(dx / cotangent, noise, rtol=0.02, atol=0.02, err_msg=contender)
        if role == BASELINE:
            np.testing.assert_allclose(noise, 1.1, rtol=0.01)
            continue
        deviations[contender] = noise.std()
        assert abs(noise.mean() - 1) < 5 * noise.std() / noise.size**0.5 + 0.01, contender
        if name == "dropout":
            kept = noise[noise != 0]
            assert 0.8 < kept.size / noise.size < 1, contender
            np.testing.assert_allclose(kept, 1 / (1 - RATE), rtol=0.02, err_msg=contender)
    ours = next(iter(deviations.values()))
    assert all(0.5 * ours < deviation < 2 * ours for deviation in deviations.values()), deviations


@pytest.fixture(name="small_networks")
def fixture_small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_networks, _torch_resnet):
        monkeypatch.setattr(module, "STAGES", ((2, 1), (3, 2)))
        monkeypatch.setattr(module, "BLOCKS", 1)
    monkeypatch.setattr(_networks, "VOCABULARY", 11)
    monkeypatch.setattr(_networks, "transformer", functools.partial(_networks.transformer, depth=1, width=8, heads=2))


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_networks_differ_in_nothing_but_the_layer() -> None:
    row = row_named("resnet")
    problem = make_problem(row, Case((4, 8, 8, 3), "float32", None))
    programs = {name: row.kind.work(build, problem) for name, _, build in contenders(row)}
    outputs = {name: program.run() for name, program in programs.items() if program is not None}
    assert outputs.keys() == programs.keys()
    for name, (loss, (weights, _), *_) in ((n, output) for n, output in outputs.items() if n not in ("torch", row.kind.baseline)):
        assert float(loss) == pytest.approx(float(outputs["jaxnorm"][0]), rel=1e-5), name
        for one, ours in zip(weights, outputs["jaxnorm"][1][0], strict=True):
            np.testing.assert_allclose(one, ours, rtol=1e-3, atol=1e-4, err_msg=name)
    assert float(outputs[row.kind.baseline][0]) != pytest.approx(float(outputs["jaxnorm"][0]), rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_transformers_start_from_the_loss_of_chance() -> None:
    row = row_named("transformer")
    problem = make_problem(row, Case((2, 6), "float32", None))
    for name, _, build in contenders(row):
        program = row.kind.work(build, problem)
        assert program is not None
        assert 0.5 * np.log(11) < float(program.run()[0]) < 2 * np.log(11), name
