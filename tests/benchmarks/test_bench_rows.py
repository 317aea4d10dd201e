"""The table of rows, the libraries beside ours, and the figures of a case."""

import importlib.util
import inspect
import math

import jax
import pytest

import jaxnorm
from jaxnorm.benchmarks import _cases, _peers, _worker
from jaxnorm.benchmarks._cases import BASELINE, COSTS, OURS, PEER, contenders, make_problem, measure
from jaxnorm.benchmarks._layer import Layer
from jaxnorm.benchmarks._measure import Program, Rounds, interleave
from jaxnorm.benchmarks._rows import ROWS, Case, Kind, Row, Sizes, cases, chosen_rows, describe_row, noise, row_named

FUNCTIONS = [name for name in jaxnorm.__all__ if not inspect.isclass(getattr(jaxnorm, name))]
NOT_MEASURED = (  # alone: what makes an argument or tells of a layer, and what is as another or less
    "classic_dropout",
    "dropout_mask",
    "drop_connect_moments",
    "example_keys",
    "fractal_join_mean",
    "noisy_linear_mean",
    "padding_mask",
    "reference_moments",
    "shake_drop_mean",
    "shake_shake_mean",
    "standout_mean",
    "swapout_mean",
    "weight_scaled",
    "word_dropout",
    "zoneout_mean",
)
LAYERS = [name for name in FUNCTIONS if name not in NOT_MEASURED]
FLAX_LACKS = (
    "adaptive_instance_norm",
    "alpha_dropout",
    "apply_mask",
    "batch_instance_norm",
    "batch_renorm",
    "concrete_dropout",
    "conditional_batch_norm",
    "cosine_norm",
    "cutout",
    "decorrelated_batch_norm",
    "domain_batch_norm",
    "drop_block",
    "drop_connect_dense",
    "drop_key",
    "dynamic_tanh",
    "embedding_dropout",
    "evonorm_b0",
    "evonorm_b1",
    "evonorm_b2",
    "evonorm_s0",
    "evonorm_s1",
    "evonorm_s2",
    "filter_response_norm",
    "fractal_join",
    "frozen_batch_norm",
    "gated_rms_norm",
    "gaussian_dropout",
    "gaussian_noise",
    "ghost_batch_norm",
    "global_response_norm",
    "iterative_norm",
    "layer_scale",
    "local_response_norm",
    "lp_batch_norm",
    "max_pool_dropout",
    "max_pool_dropout_mean",
    "maxout",
    "mc_predict",
    "mc_predict_late",
    "mean_only_batch_norm",
    "mixout",
    "modulate",
    "noisy_batch_norm",
    "noisy_linear",
    "patch_dropout",
    "scale_norm",
    "shake_drop",
    "shake_shake",
    "sparse_variational_dense",
    "sparse_variational_dense_mean",
    "spectral_norm",
    "split_batch_norm",
    "standout",
    "swapout",
    "switchable_norm",
    "tracked_instance_norm",
    "uniform_dropout",
    "unit_norm",
    "variational_dense",
    "variational_dropout",
    "virtual_batch_norm",
    "weight_norm",
    "weight_standardization",
    "zoneout",
)
SIZES = Sizes(full=((6, 5), (3, 2, 4)), quick=((2, 5),))


def test_names_are_unique_and_every_layer_has_a_row() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert {name for name in LAYERS if not name.startswith("init_")} <= set(names)


def test_every_row_has_cases_and_a_description_of_its_own() -> None:
    assert len({describe_row(row) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.ours
        assert 1 <= len(cases(row, quick=True)) <= len(cases(row, quick=False))
        assert all(math.prod(case.shape) for quick in (True, False) for case in cases(row, quick=quick))
        assert row.dtypes[0] == "float32"


def test_every_row_named_by_a_peer_is_a_row() -> None:
    for peer in _peers.PEERS:
        if importlib.util.find_spec(peer.package) is not None:
            module = importlib.import_module(f"jaxnorm.benchmarks._peers.{peer.module}")
            assert set(module.LAYERS) <= {row.name for row in ROWS}


def test_rows_name_peers_that_there_are() -> None:
    for row in ROWS:
        for name in row.peers or ():
            known = _peers.peer_layers(row.layer or row.name)
            assert name in known or _peers.missing_peers(), f"{row.name}: {name}"


def test_an_unknown_row_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown row 'dropuot'; there is dropout, .*batch_norm"):
        row_named("dropuot")


def test_which_rows_are_measured() -> None:
    assert chosen_rows() == ROWS
    assert 0 < len(chosen_rows(quick=True)) < len(ROWS)
    assert [row.name for row in chosen_rows(["transformer", "dropout"], quick=True)] == ["dropout", "transformer"]


def test_cases_are_all_shapes_types_and_devices() -> None:
    row = Row("name", "Title", ROWS[0].kind, {}, SIZES, devices=(1, 2))
    assert cases(row, quick=True) == (Case((2, 5), "float32", 1), Case((2, 5), "float32", 2))
    assert len(cases(row, quick=False)) == 2 * 2 * 2
    assert cases(row._replace(devices=()), quick=True) == (Case((2, 5), "float32", None),)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_baseline_comes_first_then_ours_then_the_peers_that_take_part(row: Row) -> None:
    found = list(contenders(row))
    roles = [role for _, role, _ in found]
    assert roles == sorted(roles, key=[BASELINE, OURS, PEER].index)
    assert roles.count(BASELINE) == 1
    assert [name for name, role, _ in found if role == OURS] == list(row.ours)
    peers = [name for name, role, _ in found if role == PEER]
    assert row.peers is None or set(peers) <= set(row.peers)
    assert len({name for name, _, _ in found}) == len(found)
    assert "flax linen" in peers or row.name in FLAX_LACKS


def test_data_are_random_and_of_the_case() -> None:
    row = row_named("batch_norm")
    problem = make_problem(row, Case((64, 16), "bfloat16", None))
    for array in (problem.x, problem.cotangent):
        assert (array.shape, array.dtype) == ((64, 16), "bfloat16")
        assert 0.9 < float(array.astype("float32").std()) < 1.1
    assert not (problem.x == problem.cotangent).all()
    assert problem.mesh is None
    assert make_problem(row, Case((64, 16), "float32", 4)).mesh.size == 4  # type: ignore[union-attr]


def test_on_a_gpu_arrays_are_longer_where_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    row = Row("name", "Title", ROWS[0].kind, {}, SIZES._replace(least_on_gpu=100))
    assert make_problem(row, Case((3, 7), "float32", None)).x.shape == (15, 7)
    assert make_problem(row, Case((30, 7), "float32", None)).x.shape == (30, 7)
    fixed = row._replace(sizes=SIZES._replace(least_on_gpu=0))
    assert make_problem(fixed, Case((3, 7), "float32", None)).x.shape == (3, 7)


def test_a_new_function_gets_its_row_by_a_line() -> None:
    row = Row("halved", "Halving", row_named("dropout").kind, {"jaxnorm": noise(lambda key, x, by: x / by, 2.0)}, SIZES, passes=4)
    case = measure(row, cases(row, quick=True)[0], Rounds(0, 3))
    assert [one["name"] for one in case["contenders"]] == ["plain pass", "jaxnorm"]


def test_a_case_has_all_figures() -> None:
    row = row_named("dropout")._replace(peers=("flax linen",))
    case = measure(row, Case((16, 8), "float32", None), Rounds(1, 3, seconds=1e-4))
    assert case["failed"] == {}
    about = {key: case[key] for key in ("row", "title", "kind", "shape", "dtype", "devices", "elements", "bytes", "baseline")}
    assert about == {
        "row": "dropout", "title": "Dropout", "kind": "forward and backward", "shape": [16, 8], "dtype": "float32",
        "devices": None, "elements": 128, "bytes": 512, "baseline": "plain pass",
    }  # fmt: skip
    plain, *ours, flax = case["contenders"]
    assert [one["name"] for one in ours] == ["jaxnorm, 16 bits", "jaxnorm, 8 bits", "jaxnorm, 32 bits"]
    for one in case["contenders"]:
        assert len(one["seconds"]) == 3
        assert one["lower_quartile_seconds"] <= one["median_seconds"] <= one["upper_quartile_seconds"]
        assert one["times_baseline"] == pytest.approx(one["median_seconds"] / plain["median_seconds"])
        assert one["speed_over_flax_linen"] == pytest.approx(flax["median_seconds"] / one["median_seconds"])
        assert one["speed_over_best_peer"] == one["speed_over_flax_linen"]
        assert one["bytes_per_second"] == pytest.approx(4 * 512 / one["median_seconds"])
        assert one["share_of_copy"] == pytest.approx(1 / one["times_baseline"])
        assert all(one[cost] is not None for cost in COSTS)
    assert flax["residual_bytes"] >= 128
    assert plain["residual_bytes"] < 128


def test_ratios_are_to_the_baseline_flax_and_the_best_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With times that are known: the clock moves by as much as each contender says."""
    now = [0.0]
    seconds = {"plain": 2.0, "jaxnorm": 3.0, "flax linen": 12.0, "torch": 6.0}
    monkeypatch.setattr(_cases, "interleave", lambda programs, rounds: interleave(programs, rounds, lambda: now[0]))

    def work(build, problem):
        def run() -> None:
            now[0] += build

        return Program(run, lambda _: None, {})

    monkeypatch.setattr(_cases, "peer_layers", lambda name: {name: seconds[name] for name in ("flax linen", "torch")})
    kind = Kind("work", work, "plain", seconds["plain"], 4)  # type: ignore[arg-type]
    row = Row("name", "Title", kind, {"jaxnorm": seconds["jaxnorm"]}, SIZES, passes=8)  # type: ignore[dict-item]
    case = measure(row, Case((2, 2), "float32", None), Rounds(2, 9))
    found = {one["name"]: one for one in case["contenders"]}
    assert {name: one["median_seconds"] for name, one in found.items()} == seconds
    ours = found["jaxnorm"]
    assert ours["times_baseline"] == 1.5
    assert ours["speed_over_flax_linen"] == 4.0
    assert ours["speed_over_best_peer"] == 2.0
    assert ours["share_of_copy"] == pytest.approx((8 / 3.0) / (4 / 2.0))
    assert found["plain"]["share_of_copy"] == 1.0


def failing(_: object) -> Layer:
    raise OSError("no such layer here")


def test_a_peer_that_fails_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cases, "peer_layers", lambda name: {"broken": failing, "absent": lambda x: None})
    row = Row("name", "Title", row_named("dropout").kind, {"jaxnorm": noise(jaxnorm.dropout, 0.5)}, SIZES)
    case = measure(row, Case((2, 4), "float32", None), Rounds(0, 1))
    assert case["failed"] == {"broken": "OSError: no such layer here"}
    assert [one["name"] for one in case["contenders"]] == ["plain pass", "jaxnorm"]
    assert case["contenders"][1]["speed_over_best_peer"] is None


def test_one_of_ours_that_fails_is_an_error() -> None:
    row = Row("name", "Title", row_named("dropout").kind, {"jaxnorm": failing}, SIZES)
    with pytest.raises(OSError, match="no such layer"):
        measure(row, Case((2, 4), "float32", None), Rounds(0, 1))


def test_libraries_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    hidden = {"haiku", "equinox", "keras", "torch"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name))
    _peers._all_layers.cache_clear()
    try:
        assert {peer.package for peer in _peers.missing_peers()} == hidden
        assert set(_peers.peer_layers("batch_norm")) == {"flax linen", "flax nnx"}
        assert _peers.peer_layers("no such layer") == {}
    finally:
        _peers._all_layers.cache_clear()


def test_how_often_rows_are_timed() -> None:
    full, quick = (_worker.rounds_of(row_named("dropout"), quick=quick, on_gpu=False) for quick in (False, True))
    assert (full.warmups, full.counted, full.queued) == (2, 9, False)
    assert quick.counted < full.counted
    assert _worker.rounds_of(row_named("dropout"), quick=False, on_gpu=True).queued
    compilation = _worker.rounds_of(row_named("dropout_compilation"), quick=True, on_gpu=False)
    assert (compilation.warmups, compilation.counted) == (0, 1)


def test_a_case_for_which_there_are_too_few_devices_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    told = []
    _worker.work(["sync_batch_norm"], quick=True, tell=told.append)
    assert [next(iter(message)) for message in told] == ["environment", "row", "note"]
    assert told[-1]["note"] == "sync_batch_norm on 8 devices is left out: there is 1"


def test_the_environment_is_described() -> None:
    told = []
    _worker.work([], quick=True, tell=told.append)
    environment = told[0]["environment"]
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["versions"]["jaxnorm"] == jaxnorm.__version__
    assert environment["backend"] == "cpu"
    assert environment["cores"] >= 1
    assert environment["processor"]
