"""The report of the lint: its order, its table, what it raises, and its form for JSON."""

import json

import pytest

from jaxnorm.diagnostics._lint.report import Finding, Report, Severity, Where

NOTE = Finding(
    "useless-parameter", "note", Where("params/Dense_0/bias", "net.py:9 in Net.__call__"), "Of no use.", "use_bias=False"
)
SHIFT = Finding(
    "noise-before-batch-norm",
    "error",
    Where("BatchNorm_1", ""),
    "The variance is 1.42 times that of inference, which is a lot: " + "every norm after it compounds what this one does. " * 3,
    "Put it last:\nx = nn.BatchNorm()(x)\nx = nn.Dropout(0.3)(x)",
    {"shift": 1.42, "predicted": float("nan")},
)
KEY = Finding("key-constant", "warning", Where("", "net.py:30 in apply"), "It is the same in each step.", "key, now = split(key)")


def few(number: int, severity: Severity = "warning", elements: int = 8) -> Finding:
    where = Where(f"Block_{number}/BatchNorm_0", "")
    return Finding("few-elements", severity, where, f"Of {elements} elements.", "GroupNorm()", {"elements": elements})


def test_findings_come_worst_first_and_those_of_a_rule_together():
    report = Report((NOTE, few(0), KEY, few(1), SHIFT, few(2, "error")))
    assert report.findings == (few(2, "error"), SHIFT, few(0), few(1), KEY, NOTE)
    assert Report(report.findings) == report


def test_how_it_prints():
    report = Report((NOTE, KEY, SHIFT), 2, 1, ("foo", "bar"), ("Callbacks were not run.",))
    assert (
        str(report)
        == """\
Found: 1 error, 1 warning, 1 note
 severity   finding
────────────────────────────────────────────────────────────────────────────────────────────────────
 error      noise-before-batch-norm at BatchNorm_1
            The variance is 1.42 times that of inference, which is a lot: every norm after it
            compounds what this one does. every norm after it compounds what this one does. every
            norm after it compounds what this one does.
            -> Put it last:
               x = nn.BatchNorm()(x)
               x = nn.Dropout(0.3)(x)

 warning    key-constant at net.py:30 in apply
            It is the same in each step.
            -> key, now = split(key)

 note       useless-parameter at params/Dense_0/bias (net.py:9 in Net.__call__)
            Of no use.
            -> use_bias=False

2 norms and 1 place with noise were looked at.
Callbacks were not run.
Not known, so that what follows them is less sure: foo, bar."""
    )


def test_it_prints_in_a_notebook_too(monkeypatch, capsys):
    plain = str(Report((NOTE,)))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(Report((NOTE,))) == plain
    assert capsys.readouterr().out == ""


def test_a_rule_that_finds_much_says_it_once_and_names_all_places():
    text = str(Report((*map(few, range(4)), few(4, elements=4), *map(few, range(5, 60)))))
    assert text.count("few-elements at Block_") == 3
    assert text.count("Of 8 elements.") == text.count("-> GroupNorm()") == 1
    assert "few-elements at 57 other places: Block_3/BatchNorm_0; Block_4/BatchNorm_0;" in text
    assert "Block_59/BatchNorm_0" in text
    assert "few-elements at 1 other place: Block_3/BatchNorm_0" in str(Report(tuple(map(few, range(4)))))


def test_what_differs_in_a_rule_is_said_of_each():
    text = str(Report((few(0), few(1, elements=4), few(2))))
    assert [text.count(f"Of {elements} elements.") for elements in (8, 4)] == [2, 1]
    assert text.count("-> GroupNorm()") == 1


def test_no_line_is_wider_than_a_terminal_and_nothing_is_cut():
    path, line = "encoder/" * 14 + "BatchNorm_0", "transformer.py:1012 in " + "Block." * 20 + "__call__"
    text = str(Report((Finding("averages-stale", "error", Where(path, line), "why " * 60 + "[bold]", "x" * 150),)))
    assert max(map(len, text.splitlines())) <= 100
    joined = text.replace(" ", "").replace("\n", "")
    for part in (path, line, "why" * 60 + "[bold]", "x" * 150):
        assert part.replace(" ", "") in joined


def test_nothing_found_and_nothing_to_look_at():
    assert str(Report((), 3, 0)) == "Nothing was found.\n3 norms and 0 places with noise were looked at."
    assert str(Report(())) == "Nothing was found.\nNo norm and no noise was met: there is little to look at."
    assert str(Report((KEY,))).startswith("Found: 1 warning\n")


@pytest.mark.parametrize("severity, found", [("note", 3), ("warning", 2), ("error", 1)])
def test_raises_for_what_is_so_severe_or_worse(severity, found):
    report = Report((NOTE, KEY, SHIFT))
    assert report.at_least(severity) == report.findings[:found]
    with pytest.raises(AssertionError) as raised:
        report.raise_for(severity)
    said = str(raised.value)
    assert said.startswith("the lint found 1 error")
    assert [one.rule in said for one in (SHIFT, KEY, NOTE)] == [True, found > 1, found > 2]


def test_raises_for_nothing_milder():
    Report((NOTE,)).raise_for("warning")
    Report(()).raise_for("note")


def test_an_unknown_severity_is_named():
    with pytest.raises(ValueError, match="severity must be 'note' or 'warning' or 'error', got 'fatal'"):
        Report((NOTE,)).raise_for("fatal")


def test_as_json():
    report = Report((NOTE, SHIFT), 2, 1, ("foo",), ("Callbacks were not run.",))
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read == report.to_dict()
    assert (read["norms"], read["noises"], read["unknown"], read["said"]) == (2, 1, ["foo"], ["Callbacks were not run."])
    shift, note = read["findings"]
    assert shift == {
        "rule": "noise-before-batch-norm",
        "severity": "error",
        "path": "BatchNorm_1",
        "line": "",
        "why": SHIFT.why,
        "fix": SHIFT.fix,
        "figures": {"shift": 1.42, "predicted": None},
    }
    assert (note["path"], note["line"], note["figures"]) == ("params/Dense_0/bias", "net.py:9 in Net.__call__", {})
