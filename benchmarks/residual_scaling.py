"""Inception-ResNet trained with and without scaling its residual branches, and one picture of both.

    python -m benchmarks.residual_scaling --workdir runs/residual_scaling

Trains `configs/residual_scaling.py` on the 1,433 training digits once for each form and seed, then draws the loss and
the accuracy over the steps; the training loss is a moving average of 9 steps. Runs that the work directory holds are
continued or, if finished, only drawn.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.config import load_config
from train.loop import DivergedError, train
from train.records import read_metrics

CONFIG = 'configs/residual_scaling.py'
FORMS = {'0.17, 0.10, 0.20': (0.17, 0.10, 0.20), '1, 1, 1': (1.0, 1.0, 1.0)}
COLORS = dict(zip(FORMS, ('#2f6690', '#c8553d'), strict=True))
WINDOW = 9  # steps of the moving average


def run(directory: Path, scales: tuple[float, ...], overrides: list[tuple[str, str]]) -> None:
    """Trains one network; a run that diverges is kept up to there, since that is a result."""
    config = load_config(CONFIG, [('model_fields.scales', str(scales)), *overrides])
    try:
        train(config, directory)
    except DivergedError as error:
        print(f'{directory}: {error}')


def draw(runs: dict[str, list[list[dict]]], path: Path) -> None:
    """runs: {form: the metrics of its seeds}."""
    figure = Figure(figsize=(9.5, 3.6), layout='constrained', facecolor='white')
    loss, held_out, accuracy = figure.subplots(1, 3)
    for form, seeds in runs.items():
        for i, records in enumerate(seeds):
            style = {'color': COLORS[form], 'label': f'scales {form}' if i == 0 else None}
            curve(loss, records, 'train', 'loss', **style)
            curve(held_out, records, 'eval', 'loss', marker='o', markersize=4, **style)
            curve(accuracy, records, 'eval', 'accuracy', marker='o', markersize=4, **style)
    for axes, title in ((loss, 'Training loss'), (held_out, 'Held-out loss'), (accuracy, 'Held-out accuracy')):
        axes.set_title(title, loc='left', weight='bold')
        axes.set_xlabel('step')
        axes.grid(color='#e6e6e6')
        axes.spines[['top', 'right']].set_visible(False)
    for axes in (loss, held_out):
        axes.set_yscale('log')
    accuracy.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    accuracy.set_ylim(0, 1.005)
    loss.legend(frameon=False, loc='lower left')
    figure.savefig(path, dpi=100)


def curve(axes: Axes, records: list[dict], kind: str, name: str, **style) -> None:
    """A metric over the steps; training metrics, one batch a step, as a moving average."""
    steps, values = np.array([(r['step'], r[name]) for r in records if r['kind'] == kind]).reshape(-1, 2).T
    if kind == 'train' and len(values) > WINDOW:
        values = np.convolve(values, np.ones(WINDOW) / WINDOW, 'valid')
        steps = steps[WINDOW // 2 :][: len(values)]
    axes.plot(steps, values, linewidth=1.6, **style)


def summary(records: list[dict]) -> str:
    """The evaluations as `accuracy (loss)`, in order."""
    return ', '.join(f'{r["accuracy"]:.2%} ({r["loss"]:.3g})' for r in records if r['kind'] == 'eval')


def main() -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.residual_scaling', allow_abbrev=False)
    parser.add_argument('--workdir', type=Path, default='runs/residual_scaling')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--epochs', type=int, help='instead of those of the config')
    parser.add_argument('--output', type=Path, default='docs/residual_scaling.png')
    args = parser.parse_args()
    runs = {form: [] for form in FORMS}
    for seed in args.seeds:
        for form, scales in FORMS.items():
            directory = args.workdir / f'scales_{"_".join(map(str, scales))}_seed_{seed}'
            overrides = [('seed', str(seed)), *([('epochs', str(args.epochs))] if args.epochs else [])]
            run(directory, scales, overrides)
            runs[form].append(read_metrics(directory / 'metrics.jsonl'))
            print(f'scales {form}, seed {seed}: {summary(runs[form][-1])}')
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(runs, args.output)
    print(args.output)


if __name__ == '__main__':
    main()
