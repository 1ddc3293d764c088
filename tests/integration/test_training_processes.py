"""Training on several processes, as on several GPUs."""

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd

from training.checkpoint import load_checkpoint

TWO_PROCESSES = """
import sys
from pathlib import Path
from training.fit import fit
import numpy as np
import pandas as pd
from training.prepared import Prepared
from training.imaging.preprocessing import Preprocessing
from training.settings import Settings

images = np.random.default_rng(0).integers(0, 256, (37, 32, 32), dtype=np.uint8)
manifest = pd.DataFrame({"image": [f"{k}.png" for k in range(37)], "patient_id": [str(k) for k in range(37)]})
manifest["split"] = ["train"] * 24 + ["validation"] * 13  # odd, so that the processes' shares differ
manifest["Mass"] = (np.arange(37) % 3 == 0).astype(np.uint8)
fit(
    Prepared(manifest, images, Preprocessing(size=32)),
    Settings(start="chance", epochs=1, batch_size=3, accelerator="cpu", devices=2, strategy="ddp"),
    Path(sys.argv[1]),
    progress=False,
)
"""


def test_two_processes_share_the_films_and_leave_one_run(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TWO_PROCESSES)
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, tmp_path / "train.py", tmp_path / "run"],
        cwd=root, env={"PYTHONPATH": str(root), "PATH": "", "OMP_NUM_THREADS": "1"}, check=True, timeout=280,
    )  # fmt: skip
    assert math.isfinite(pd.read_csv(tmp_path / "run/metrics.csv")["validation/loss"].item())
    load_checkpoint(tmp_path / "run/checkpoint.safetensors", findings=None)
