"""The training loop: from a config and a directory to a trained network, its checkpoints and its report.

A run is a function of (config, seed): killed at any moment and started again, it ends with the same parameters.
"""

import collections
import contextlib
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import flaxzoo
from train import workdir
from train.checkpoint import Checkpoints
from train.data import identity
from train.data.pipeline import train_batches
from train.errors import UserError
from train.evaluate import Outcome, evaluate
from train.experiment import Experiment, abstract_state, augmenter, build, normaliser
from train.prefetch import Prefetcher
from train.preparation import as_recorded
from train.records import Progress, Records
from train.report import write_report
from train.state import TrainState
from train.step import make_eval_step, make_train_step


class DivergedError(UserError):
    """The loss or the gradient became infinite or not a number."""


def train(config: ConfigDict, directory: Path) -> dict[str, float]:
    """Trains to the end, from the newest checkpoint in `directory` if there is one.

    Returns:
      The held-out metrics at the end: loss, accuracy, top5.

    Raises:
      UserError: something is wrong with the config, the data or the directory, or the training diverged; what was
        saved before is untouched.
    """
    config = as_recorded(config, workdir.record(directory))
    workdir.check(directory, config)
    multihost_utils.sync_global_devices('every process has looked at the directory before one writes to it')
    experiment = build(config)
    config = experiment.config
    if Checkpoints(directory / 'checkpoints').steps:
        identity.check(directory, experiment.data)
    writes = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if writes:
            stack.enter_context(workdir.claimed(directory, config))
            identity.record(directory, experiment.data)
        checkpoints = stack.enter_context(Checkpoints(directory / 'checkpoints', config.keep_checkpoints))
        found = checkpoints.restore_newest(abstract_state(config, experiment.model, experiment.image_shape))
        state, record = found or (experiment.initial_state(), {})
        records = stack.enter_context(Records(directory, int(state.step), writes))
        progress = Progress(experiment.total, config.batch_size, sys.stderr if writes else None)
        if found:
            progress.say(f'found the checkpoint of step {int(state.step)} in {directory}')
        return _Run(experiment, directory, checkpoints, records, progress).run(state, record)


class _Run:
    """One process's part of a run, from a state to the end."""

    def __init__(
        self,
        experiment: Experiment,
        directory: Path,
        checkpoints: Checkpoints,
        records: Records,
        progress: Progress,
    ) -> None:
        self.experiment, self.config, self.parallel = experiment, experiment.config, experiment.parallel
        self.directory, self.checkpoints, self.records, self.progress = directory, checkpoints, records, progress
        train_step = make_train_step(
            experiment.model,
            experiment.tx,
            augment=augmenter(self.config),
            normalise=normaliser(self.config),
            seed=self.config.seed,
            label_smoothing=self.config.label_smoothing,
            ema_decay=self.config.ema_decay,
            freeze=self.config.freeze,
        )
        self.train_step = self.parallel.compile(train_step, donate_state=True)
        self.eval_step = self.parallel.compile(make_eval_step(experiment.model, normaliser(self.config)))
        self.window: list[dict[str, jax.Array]] = []  # metrics of the steps since the last line, on the devices

    def run(self, host_state: TrainState, record: dict[str, Any]) -> dict[str, float]:
        """Trains from `host_state` to the last step, reports, and returns the last evaluation's metrics."""
        start, total = int(host_state.step), self.experiment.total
        state, outcome = self.parallel.replicate(host_state), None
        if start < total:
            state, outcome = self._train(state, start, total)
            record = self._record(outcome)
        else:
            self.progress.say(f'already done: all {total} steps')
        if not (self.directory / 'report.png').exists():
            outcome = outcome or self._evaluate(state)
            if jax.process_index() == 0:
                self._save_weights(state)
                write_report(self.directory, outcome, self.experiment.data)
        metrics = record['metrics']
        self.progress.say(
            f'held-out accuracy {metrics["accuracy"]:.2%}, loss {metrics["loss"]:.4f}; in {self.directory}'
        )
        return metrics

    def _train(self, state: Any, start: int, total: int) -> tuple[Any, Outcome]:
        rows = self.parallel.rows(self.config.batch_size)
        batches = train_batches(self.experiment.data.train, self.config, rows, start, total)
        evaluations, every = self.experiment.evaluations, self.config.checkpoint_every_steps
        running: collections.deque = collections.deque()
        with Prefetcher(batches, self.parallel.shard) as prefetched:
            for step, batch in enumerate(prefetched, start + 1):
                state, metrics = self.train_step(state, batch)
                self.window.append(metrics)
                running.append(metrics)
                if step == start + 1 or len(running) > self.parallel.run_ahead:
                    jax.block_until_ready(running.popleft())
                if step == start + 1:
                    self.progress.start(step, prefetched.waited)
                evaluating = step in evaluations
                saving = evaluating or (every and step % every == 0)
                if saving or step % self.config.log_every_steps == 0:
                    self._log(step, prefetched.waited)
                if saving:
                    outcome = self._evaluate(state) if evaluating else None
                    self._save(step, state, outcome)
                    self.progress.resume(step, prefetched.waited)
        return state, outcome

    def _log(self, step: int, waited: float) -> None:
        """Reads the metrics of the steps since the last line, and writes their means."""
        window = self.parallel.fetch(self.window)
        self.window = []
        for number, metrics in enumerate(window, step - len(window) + 1):
            for name in ('loss', 'grad_norm'):
                if not np.isfinite(metrics[name]):
                    raise DivergedError(self._diverged(number, name, float(metrics[name])))
        values = {name: float(np.mean([metrics[name] for metrics in window])) for name in window[0]}
        values['epoch'] = step * self.config.batch_size / len(self.experiment.data.train)
        values['learning_rate'] = float(self.experiment.schedule(step - 1))
        speed = self.progress.measure(step, waited)
        self.progress.update(step, values | speed)
        self.records.write('train', step, values | speed)

    def _diverged(self, step: int, name: str, value: float) -> str:
        self.checkpoints.wait()
        steps = self.checkpoints.steps
        good = f'the last good checkpoint is that of step {steps[-1]}' if steps else 'there is no checkpoint yet'
        return f'{name} is {value} at step {step}; {good}, in {self.directory}. Try a lower learning rate or clip_norm.'

    def _evaluate(self, state: Any) -> Outcome:
        held_out = self.experiment.data.held_out
        return evaluate(self.eval_step, state.variables, held_out, self.config, self.parallel)

    def _save(self, step: int, state: Any, outcome: Outcome | None) -> None:
        record = self._record(outcome)
        if outcome:
            self.records.write('eval', step, record['metrics'])
            self.progress.say(f'step {step}: ' + ', '.join(f'{k} {v:.4f}' for k, v in record['metrics'].items()))
        self.checkpoints.save(self.parallel.fetch(state), record, outcome and record['metrics']['accuracy'])

    def _save_weights(self, state: Any) -> None:
        """What was trained, under torch's names, for flaxzoo.load and for PyTorch."""
        model = self.experiment.model
        data = self.experiment.data
        metadata = {'model': self.config.model, 'class_names': list(data.class_names), 'data': data.identity()}
        flaxzoo.save(
            self.directory / 'weights.safetensors', self.parallel.fetch(state.variables), metadata, model=model
        )

    def _record(self, outcome: Outcome | None) -> dict[str, Any]:
        """What a checkpoint keeps besides the state: enough to classify without the data set."""
        data = self.experiment.data
        return {
            'metrics': outcome and outcome.metrics,
            'class_names': list(data.class_names),
            'image_shape': list(self.experiment.image_shape),
        }
