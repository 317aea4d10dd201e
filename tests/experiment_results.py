"""What a run wrote, read back."""

import csv
from pathlib import Path

import numpy as np


def measured(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns the numbers of `results.csv` by arm and quantity: `[seeds]`, or `[places, seeds]` of a curve."""
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["arm"], {}).setdefault(row["quantity"], {}).setdefault(row["place"], []).append(
                float(row["value"])
            )
    return {
        arm: {name: np.array(places[""] if "" in places else [*places.values()]) for name, places in quantities.items()}
        for arm, quantities in rows.items()
    }
