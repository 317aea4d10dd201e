"""What a lint says of a run, before its first step."""

import sys
from typing import Any

from tqdm import tqdm

from jaxnorm.training.batches import examples_of
from jaxnorm.training.state import PyTree, TrainState
from jaxnorm.training.steps import Trained, TrainStep


def print_findings(step: TrainStep, state: TrainState, batch: Any) -> None:
    """Prints what is worse than a note in a step, and in the model that it trains, where it is one of `make_train_step`."""
    from jaxnorm.diagnostics import Finding, Report, lint_step  # which imports what is here

    reports = [lint_step(step, state, batch)]
    trained = getattr(step, "trained", None)
    if trained is not None:
        reports.insert(0, _of_model(trained, state, batch))
    findings: list[Finding] = []
    for report in reports:  # where both see a fault, of the model alone, whose lint names the layer
        known = {one.rule for one in findings}
        findings += [one for one in report.at_least("warning") if one.rule not in known]
    if findings:
        first = reports[0]
        said = dict.fromkeys(sentence for report in reports for sentence in report.said)
        tqdm.write(str(Report(tuple(findings), first.norms, first.noises, first.unknown, tuple(said))), file=sys.stderr)


def _of_model(trained: Trained, state: TrainState, batch: Any) -> Any:
    from jaxnorm.diagnostics import lint

    scheduled = {name: schedule(state.step) for name, schedule in trained.schedules.items()}

    def apply(key: Any, params: PyTree, stats: PyTree, x: PyTree, *, train: bool) -> tuple[Any, PyTree]:
        return trained.apply(key, params, stats, x, train=train, **(scheduled if train else {}))

    examples, _ = examples_of(batch, trained.unpack)
    return lint(apply, state.params, state.stats, examples.x, key=state.key, optimizer=trained.optimizer)
