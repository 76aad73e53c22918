"""report.png: how the training went, what is confused with what, and the most confident mistakes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from train.data import Dataset
from train.evaluate import Outcome
from train.files import replace_file
from train.records import read_metrics

MAX_CLASSES = 20  # in the confusion matrix; beyond it, those that are confused most
COLUMNS = 6  # of pictures, in at most two rows
TRAIN, HELD_OUT, GRID = '#9db4c8', '#c8553d', '#e6e6e6'


def is_report(path: Path, step: int) -> bool:
    """Whether `path` is a whole report of the state after `step` updates."""
    try:
        with Image.open(path, formats=('PNG',)) as image:
            image.load()
            return image.info.get('step') == str(step)
    except (OSError, SyntaxError, ValueError):
        return False


def write_report(workdir: Path, outcome: Outcome, data: Dataset, step: int) -> None:
    """Draws `workdir/report.png` from the run's metrics.jsonl and an evaluation of its held-out images after `step`.

    Raises:
      OSError: it cannot be written; the one before is as it was.
    """
    metrics, count = outcome.metrics, len(outcome.label)
    worst = _worst(outcome)
    rows = -(-len(worst) // COLUMNS)
    figure = Figure(figsize=(13, 7 + 2.4 * rows), layout='constrained', facecolor='white')
    top, bottom = figure.subfigures(2, 1, height_ratios=(6.4, 0.4 + 2.4 * rows))
    panels = top.subplot_mosaic([['loss', 'confusion'], ['accuracy', 'confusion']], width_ratios=(1, 1.1))
    records = read_metrics(workdir / 'metrics.jsonl')
    _curve(panels['loss'], records, 'loss', 'Loss')
    _curve(panels['accuracy'], records, 'accuracy', 'Accuracy')
    panels['accuracy'].set_xlabel('step')
    panels['loss'].legend(frameon=False)
    _confusion(panels['confusion'], outcome, data.class_names)
    _mistakes(bottom, rows, worst, outcome, data)
    wrong = int((outcome.predicted != outcome.label).sum())
    top.suptitle(
        f'{metrics["accuracy"]:.2%} of {count:,} held-out images right, {wrong:,} wrong\n', fontsize=16, weight='bold'
    )
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100, format='png', metadata={'step': str(step)})
    replace_file(workdir / 'report.png', picture.getvalue())


def _curve(axes: Axes, records: list[dict[str, Any]], name: str, title: str) -> None:
    for kind, label, style in (('train', 'training', {'color': TRAIN}), ('eval', 'held out', {'color': HELD_OUT})):
        points = [(r['step'], r[name]) for r in records if r['kind'] == kind and r.get(name) is not None]
        marker = 'o' if kind == 'eval' and len(points) <= 30 else ''
        axes.plot(*np.array(points).reshape(-1, 2).T, label=label, marker=marker, markersize=4, linewidth=2, **style)
    axes.set_title(title, loc='left', weight='bold')
    axes.grid(color=GRID)
    axes.spines[['top', 'right']].set_visible(False)
    if name == 'accuracy':
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
        axes.set_ylim(top=1.005)
    else:
        axes.set_ylim(bottom=0)


def confusion(outcome: Outcome, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The confusion matrix (true, predicted) of the at most `MAX_CLASSES` classes with most errors, and their indices.

    A class's errors are its images taken for another and those of others taken for it.
    """
    wrong = outcome.label != outcome.predicted
    errors = np.bincount(outcome.label[wrong], minlength=classes) + np.bincount(
        outcome.predicted[wrong], minlength=classes
    )
    shown = np.sort(np.argsort(-errors, kind='stable')[:MAX_CLASSES])
    place = np.full(classes, -1)
    place[shown] = np.arange(len(shown))
    true, predicted = place[outcome.label], place[outcome.predicted]
    inside = (true >= 0) & (predicted >= 0)
    matrix = np.zeros((len(shown), len(shown)), int)
    np.add.at(matrix, (true[inside], predicted[inside]), 1)
    return matrix, shown


def _confusion(axes: Axes, outcome: Outcome, names: tuple[str, ...]) -> None:
    matrix, shown = confusion(outcome, len(names))
    part = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    # The square root makes the few confusions visible beside the many hits.
    hit = np.eye(len(shown), dtype=bool)
    axes.imshow(np.where(hit, np.sqrt(part), np.nan), cmap='Blues', vmin=0, vmax=1.15)
    axes.imshow(np.where(hit | (part == 0), np.nan, np.sqrt(part)), cmap='Oranges', vmin=0, vmax=1)
    axes.set_facecolor('#f6f6f6')
    for row, column in np.argwhere(matrix):
        colour = 'white' if part[row, column] > 0.3 else 'black'
        axes.text(column, row, matrix[row, column], ha='center', va='center', fontsize=9, color=colour)
    labels = [_short(names[i], 14) for i in shown]
    upright = max(map(len, labels)) <= 3
    axes.set_xticks(range(len(shown)), labels, rotation=0 if upright else 90)
    axes.set_yticks(range(len(shown)), labels)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title = 'Confusion' if len(shown) == len(names) else f'Confusion, the {len(shown)} classes with most errors'
    axes.set_title(title, loc='left', weight='bold')


def _worst(outcome: Outcome) -> np.ndarray:
    """Indices of the wrong predictions with the highest confidence, highest first."""
    wrong = np.flatnonzero(outcome.label != outcome.predicted)
    return wrong[np.argsort(-outcome.confidence[wrong], kind='stable')][: 2 * COLUMNS]


def _mistakes(figure: SubFigure, rows: int, worst: np.ndarray, outcome: Outcome, data: Dataset) -> None:
    figure.suptitle('Most confident mistakes' if rows else 'No mistakes', x=0.01, ha='left', weight='bold')
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat) if rows else []
    for panel in panels:
        panel.axis('off')
    for panel, index in zip(panels, worst, strict=False):
        image = data.held_out[int(outcome.index[index])]['image']
        panel.imshow(image.squeeze(), cmap='gray', vmin=0, vmax=255)
        true, predicted = (_short(data.class_names[a[index]], 16) for a in (outcome.label, outcome.predicted))
        panel.set_title(f'{predicted}, {outcome.confidence[index]:.0%} sure\ntrue: {true}', fontsize=9)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + '…'
