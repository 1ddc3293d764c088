"""The paper's comparison of learning rates: the same run at each, and one picture of their losses."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pandas as pd

from training import plots
from training.fit import Diverged, fit
from training.prepared import Prepared
from training.settings import Settings

PAPER_RATES: Final = (1e-2, 1e-3, 1e-4, 1e-5)


def sweep(
    prepared: Prepared,
    settings: Settings,
    folder: Path,
    *,
    rates: Sequence[float] = PAPER_RATES,
    code_commit: str = "",
) -> pd.DataFrame:
    """learning_rate, train_loss, macro_auroc (the best on validation) of a run per rate, and learning_rates.png.

    A rate at which the loss diverges has NaN from there on. Started again after a kill it goes on.
    """
    runs: dict[float, pd.DataFrame] = {}
    for rate in rates:
        run = folder / f"rate-{rate:g}"
        with suppress(Diverged):  # what it reached before is in its metrics.csv, if it reached anything
            fit(prepared, replace(settings, learning_rate=rate), run, code_commit=code_commit)
        written = run / "metrics.csv"
        runs[rate] = (
            pd.read_csv(written) if written.exists() else pd.DataFrame({"epoch": [1], "train_loss": [math.nan]})
        )
    plots.save(plots.learning_rates(runs), folder / "learning_rates.png")
    rows = [
        {
            "learning_rate": rate,
            "train_loss": epochs["train_loss"].iloc[-1],
            "macro_auroc": epochs.get("validation/auroc/macro", pd.Series([math.nan])).max(),
        }
        for rate, epochs in runs.items()
    ]
    table = pd.DataFrame(rows)
    table.to_csv(folder / "sweep.csv", index=False)
    return table
