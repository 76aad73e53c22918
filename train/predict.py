"""Classifying images with what a run has saved: `python -m train.predict --workdir DIR [IMAGE ...]`."""

from train import stop

if __name__ == '__main__':
    stop.listen()  # before the imports below, which take seconds

import argparse
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from train import workdir
from train.checkpoint import CheckpointError, Checkpoints
from train.data import open_dataset
from train.data.pipeline import eval_transform, readable, skips
from train.data.source import DataError, decode
from train.errors import run_command
from train.experiment import abstract_state, normaliser
from train.state import build_model


class Classifier:
    """A trained network as saved in a work directory; it needs the data set no more.

    Args:
      directory: of the run.
      step: of the checkpoint; None is the newest.

    Raises:
      WorkdirError, CheckpointError: there is no run, or no such whole checkpoint.
    """

    def __init__(self, directory: Path, step: int | None = None) -> None:
        self.config: ConfigDict = workdir.read_config(directory)
        checkpoints = Checkpoints(directory / 'checkpoints')
        if not checkpoints.steps or (step is not None and step not in checkpoints.steps):
            raise CheckpointError(f'{directory} has checkpoints of the steps {checkpoints.steps or "(none)"}')
        self.step = checkpoints.steps[-1] if step is None else step
        record = checkpoints.read_record(self.step)
        self.class_names: list[str] = record['class_names']
        self.image_shape: tuple[int, int, int] = tuple(record['image_shape'])
        model = build_model(self.config, len(self.class_names))
        state, _ = checkpoints.restore(self.step, abstract_state(self.config, model, self.image_shape))
        normalise = normaliser(self.config)
        self._probabilities = jax.jit(lambda images: jax.nn.softmax(model.apply(state.variables, normalise(images))))

    def __call__(self, images: list[np.ndarray]) -> list[tuple[str, float]]:
        """The name of the most probable class and its probability, for each of the uint8 images (H, W, C)."""
        transform = eval_transform(self.config)
        batch = np.stack([transform(image) for image in images])
        if batch.shape[1:] != self.image_shape:
            raise DataError(f'the network was trained on images of shape {self.image_shape}, got {batch.shape[1:]}')
        probabilities = np.asarray(self._probabilities(batch), np.float32)
        return [(self.class_names[int(p.argmax())], float(p.max())) for p in probabilities]


def main(argv: list[str]) -> None:
    """Classifies files, or some held-out images of the run's data set, and prints the result."""
    parser = argparse.ArgumentParser('python -m train.predict')
    parser.add_argument('--workdir', required=True, type=Path)
    parser.add_argument('--step', type=int, help='of the checkpoint; the newest if not given')
    parser.add_argument('--count', type=int, default=8, help='held-out images to take if no file is named')
    parser.add_argument('images', nargs='*', type=Path, help='image files')
    args = parser.parse_args(argv)
    classifier = Classifier(args.workdir, args.step)
    if args.images:
        mode = 'L' if classifier.image_shape[-1] == 1 else 'RGB'
        names = [str(path) for path in args.images]
        images = [decode(path, mode=mode, exif_orientation=classifier.config.exif_orientation) for path in args.images]
        truths = None
    else:
        held_out = open_dataset(classifier.config).held_out
        indices = np.unique(np.linspace(0, len(held_out) - 1, args.count).round().astype(int))
        examples = [readable(held_out, int(i), skip=skips(classifier.config))[0] for i in indices]
        names = [f'held-out image {i}' for i in indices]
        images = [example['image'] for example in examples]
        truths = [classifier.class_names[example['label']] for example in examples]
    _print(classifier.step, names, classifier(images), truths)


def _print(step: int, names: list[str], found: list[tuple[str, float]], truths: list[str] | None) -> None:
    width = max(map(len, names))
    wide = max(len(name) for name, _ in found)
    print(f'checkpoint of step {step}')
    for i, (name, (predicted, confidence)) in enumerate(zip(names, found, strict=True)):
        verdict = '' if truths is None else '  right' if truths[i] == predicted else f'  wrong, it is {truths[i]}'
        print(f'{name:{width}}  {predicted:{wide}}  {confidence:6.1%}{verdict}')
    if truths is not None:
        right = sum(truth == predicted for truth, (predicted, _) in zip(truths, found, strict=True))
        print(f'{right} of {len(names)} right')


if __name__ == '__main__':
    run_command(main)
