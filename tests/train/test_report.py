import json
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.digits import Arrays, open_digits
from train.data.source import Dataset
from train.evaluate import Outcome
from train.report import confusion, write_report

RNG = np.random.default_rng(0)


def outcome_of(label: np.ndarray, predicted: np.ndarray) -> Outcome:
    confidence = np.linspace(0.1, 1, len(label))
    return Outcome(label, predicted, confidence, confidence, (label != predicted).astype(int), np.arange(len(label)))


def write_metrics(workdir: Path) -> None:
    records = [{'kind': kind, 'step': s, 'loss': 1 / s, 'accuracy': 0.5} for s in (5, 10) for kind in ('train', 'eval')]
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))


def test_confusion_of_few_classes_is_whole():
    label, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    matrix, shown = confusion(outcome_of(label, predicted), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert shown.tolist() == [0, 1, 2]


def test_confusion_of_many_classes_shows_those_that_are_confused_most():
    label = np.arange(1000).repeat(3)
    predicted = label.copy()
    predicted[label == 700] = 31
    matrix, shown = confusion(outcome_of(label, predicted), 1000)
    assert len(shown) == 20
    place = {name: i for i, name in enumerate(shown)}
    assert matrix[place[700], place[31]] == 3
    assert matrix[place[31], place[31]] == 3
    assert matrix[place[700], place[700]] == 0


def test_a_report_of_digits_and_of_a_perfect_network(tmp_path: Path):
    data = open_digits()
    label = np.array(data.held_out.labels)
    write_metrics(tmp_path)
    heights = []
    for wrong in (0, 3, 100):
        predicted = label.copy()
        predicted[:wrong] = (predicted[:wrong] + 1) % 10
        write_report(tmp_path, outcome_of(label, predicted), data, 10)
        with Image.open(tmp_path / 'report.png') as picture:
            picture.load()
            heights.append(picture.height)
    assert heights == sorted(set(heights))  # no, one and two rows of mistakes
    assert sorted(p.name for p in tmp_path.iterdir()) == ['metrics.jsonl', 'report.png']


def test_a_report_of_a_thousand_classes_with_long_names(tmp_path: Path):
    label = RNG.integers(0, 1000, 3000)
    predicted = np.where(RNG.random(3000) < 0.7, label, RNG.integers(0, 1000, 3000))
    images = RNG.integers(0, 255, (3000, 8, 8, 3), dtype=np.uint8)
    names = tuple(f'a rather long name of class {i}' for i in range(1000))
    write_metrics(tmp_path)
    write_report(tmp_path, outcome_of(label, predicted), Dataset(None, Arrays(images, label), names), 10)
    with Image.open(tmp_path / 'report.png') as picture:
        assert picture.width == 1300
