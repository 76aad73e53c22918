"""report.png: how the training went and what the network still gets wrong."""

from pathlib import Path

from train.data import Dataset
from train.evaluate import Outcome


def write_report(workdir: Path, outcome: Outcome, data: Dataset) -> None:
    pass
