import json

import pytest

from jaxnorm.benchmarks import training
from jaxnorm.benchmarks._accumulation import CHOICES
from jaxnorm.benchmarks._loops import LOOPS, Size, loops, time_steps
from jaxnorm.benchmarks._sharded_step import collectives_of_a_step
from jaxnorm.benchmarks._training_worker import measured

CHOICE = {"temporary_bytes": 2**20, "compile_seconds": 0.5, "trace_seconds": 0.25, "seconds": 0.004, "difference": 1e-7}


def fake(name, *arguments, devices=1):
    """What a process would find: the nth loop takes n times as long and needs n MiB, but for rounds that were disturbed."""
    if name == "memory":
        return (1 + LOOPS.index(arguments[1])) * 2**20
    if name == "loops":
        return {loop: [n * 1e-3, n * 9e-3, n * 2e-3] for n, loop in enumerate(LOOPS, 1)}
    if name == "accumulation":
        return {choice: CHOICE | {"seconds": 0.002 * n} for n, choice in enumerate(CHOICES, 1)}
    assert (name, devices) == ("collectives", 8)
    return {"2": [["all-reduce", 128], ["all-gather", 5000]], "8": [["all-reduce", 128], ["all-reduce", 256]]}


def test_tables_and_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(training, "measured", fake)
    assert training.main(["--out", str(tmp_path)]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "training.md").read_text()
    for line in (
        "| steps of about 1.5 ms: by hand | 2 | 1.000 | 1 |",
        "| steps of about 50 ms: fit, 8 steps a dispatch | 8 | 4.000 | 4 |",
        "| perceptron (3 batch norms): exact | 8 | 4.00 | 1.0 | 0.5 | 1e-07 |",
        "| jit, flax.linen, 2 devices | all-gather, all-reduce | 2 | 1 | 128 | 5128 |",
        "| shard_map, jaxnorm.linen, 8 devices | all-reduce | 2 | 2 | 384 | 384 |",
    ):
        assert line in page, line
    assert "Collectives" in printed
    assert len(json.loads((tmp_path / "training.json").read_text())) == 2 + 3 + 6


def test_a_step_of_ours_has_no_more_collectives_than_one_of_flax():
    ours, theirs, none = (collectives_of_a_step(library, "jit", 2) for library in ("jaxnorm.linen", "flax.linen", "no norm"))
    assert len(none) == 1
    assert len(ours) == len(theirs) == 1 + 2 * 2
    assert sorted(size for _, size in ours)[:4] == [128, 128, 256, 256]  # of 16 and 32 channels, two numbers each
    assert sum(size for _, size in ours) <= sum(size for _, size in theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as in the process that measures
def test_all_loops_train_the_same():
    losses = {name: epoch() for name, epoch in loops(Size(2, 8, 16)).items()}
    assert list(losses) == list(LOOPS)
    for loss in losses.values():
        assert loss == pytest.approx(losses["by hand"], rel=1e-5)
    assert {len(timing.samples) for timing in time_steps(Size(2, 8, 3), 2).values()} == {2}


@pytest.mark.slow
def test_what_a_process_measures():
    found = measured("collectives", "no norm", "jit", devices=8)
    assert [len(found[devices]) for devices in ("1", "2", "4", "8")] == [0, 1, 1, 1]
    with pytest.raises(RuntimeError, match=r"(?s)the process that measures loops of no such size failed: .*KeyError"):
        measured("loops", "no such size")
