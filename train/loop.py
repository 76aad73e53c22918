"""The training loop: from a config and a directory to a trained network, its checkpoints and its report.

A run is a function of (config, seed): killed at any moment, or stopped by a signal, and started again, it ends with the
same parameters and the same records.
"""

import collections
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import flaxzoo
from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.files import read_metadata, read_weights
from train import stop, workdir
from train.checkpoint import Checkpoints
from train.data import identity, workers
from train.data.pipeline import train_batches
from train.errors import UserError
from train.evaluate import Outcome, evaluate
from train.experiment import Experiment, abstract_state, augmenter, build, normaliser
from train.prefetch import Prefetcher
from train.preparation import as_recorded
from train.records import Progress, Records, finite
from train.report import is_report, write_report
from train.state import TrainState
from train.step import make_eval_step, make_train_step
from train.workdir import Workdir, WorkdirError


class DivergedError(UserError):
    """The loss or the gradient became infinite or not a number."""


def train(config: ConfigDict, directory: Path) -> dict[str, float]:
    """Trains to the end, from the newest checkpoint in `directory` if there is one.

    Returns:
      The held-out metrics at the end: loss, accuracy, top5; None where one is not finite.

    Raises:
      UserError: something is wrong with the config, the data or the directory, or the training diverged; what was
        saved before is untouched.
      SystemExit: a signal asked for a stop, see `train.stop`; the step that was at work is saved.
    """
    config = as_recorded(config, workdir.record(directory))
    workdir.check(directory, config)
    multihost_utils.sync_global_devices('every process has looked at the directory before one writes to it')
    workers.remove_abandoned()
    experiment = build(config)
    config = experiment.config
    if Checkpoints(directory / 'checkpoints').steps:
        identity.check(directory, experiment.data)
    writes = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        claimed = stack.enter_context(workdir.claimed(directory)) if writes else None
        checkpoints = stack.enter_context(Checkpoints(directory / 'checkpoints', config.keep_checkpoints))
        found = checkpoints.restore_newest(abstract_state(config, experiment.model, experiment.image_shape))
        state, record = found or (experiment.initial_state(), {})
        records = stack.enter_context(Records(directory, int(state.step), record.get('lines', 0), writes))
        progress = Progress(experiment.total, config.batch_size, sys.stderr if writes else None)
        if found:
            progress.say(f'found the checkpoint of step {int(state.step)} in {directory}')
        return _Run(experiment, directory, claimed, checkpoints, records, progress).run(state, record)


class _Run:
    """One process's part of a run, from a state to the end."""

    def __init__(
        self,
        experiment: Experiment,
        directory: Path,
        claimed: Workdir | None,
        checkpoints: Checkpoints,
        records: Records,
        progress: Progress,
    ) -> None:
        """claimed: the directory in the process that writes, None in the others."""
        self.experiment, self.config, self.parallel = experiment, experiment.config, experiment.parallel
        self.directory, self.claimed = directory, claimed
        self.checkpoints, self.records, self.progress = checkpoints, records, progress
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
        # Metrics of the steps since the last line: those that were read, and those still on the devices.
        self.window: list[dict[str, np.float32]] = []
        self.unread: list[dict[str, jax.Array]] = []

    def run(self, host_state: TrainState, record: dict[str, Any]) -> dict[str, float]:
        """Trains from `host_state` to the last step, reports, and returns the last evaluation's metrics."""
        start, total = int(host_state.step), self.experiment.total
        self.window = [{name: np.float32(value) for name, value in m.items()} for m in record.get('window', [])]
        state, outcome = self.parallel.replicate(host_state), None
        if start < total:
            state, outcome = self._train(state, start, total)
            record = self._record(outcome)
        else:
            self.progress.say(f'already done: all {total} steps')
        self._conclude(state, outcome, total)
        metrics = record['metrics']
        shown = {name: float('nan') if value is None else value for name, value in metrics.items()}
        self.progress.say(f'held-out accuracy {shown["accuracy"]:.2%}, loss {shown["loss"]:.4f}; in {self.directory}')
        return metrics

    def _train(self, state: Any, start: int, total: int) -> tuple[Any, Outcome | None]:
        rows = self.parallel.rows(self.config.batch_size)
        batches = train_batches(self.experiment.data.train, self.config, rows, start, total)
        evaluations, every = self.experiment.evaluations, self.config.checkpoint_every_steps
        running: collections.deque = collections.deque()
        step, saved, signal = start, start, 0
        with stop.finishing(), Prefetcher(batches, self.parallel.shard, self._hangs) as prefetched:
            for step, batch in enumerate(prefetched, start + 1):
                state, metrics = self.train_step(state, batch)
                self.unread.append(metrics)
                running.append(metrics)
                if step == start + 1 or len(running) > self.parallel.run_ahead:
                    jax.block_until_ready(running.popleft())
                if step == start + 1:
                    self._begin(step, prefetched.waited)
                evaluating = step in evaluations
                saving = evaluating or (every and step % every == 0)
                logging = saving or step % self.config.log_every_steps == 0
                if logging:
                    self._log(step, prefetched.waited)
                if saving:
                    outcome = self._evaluate(state) if evaluating else None
                    self._save(step, state, outcome)
                    saved = step
                    self.progress.resume(step, prefetched.waited)
                if signal := self._agreed(logging):
                    break
            if signal or step < total:
                self._stop(signal or stop.requested(), step, None if saved == step else state)
        return state, outcome

    def _begin(self, step: int, waited: float) -> None:
        """After the first step: the directory is this run's from here on."""
        if self.claimed:
            with self._writing(step):
                self.claimed.begin(self.config)
                identity.record(self.directory, self.experiment.data)
        self.progress.start(step, waited)

    def _hangs(self) -> bool:
        """Whether a stop is wanted, for the moment in which no batch is ready; other processes would wait for it."""
        return jax.process_count() == 1 and bool(stop.requested())

    def _agreed(self, logging: bool) -> int:
        """The signal that asked for a stop, the same in all processes, which it may not have reached; else 0."""
        if jax.process_count() == 1:
            return stop.requested()
        return int(multihost_utils.process_allgather(np.int32(stop.requested())).max()) if logging else 0

    def _stop(self, signal: int, step: int, unsaved: Any) -> NoReturn:
        """Saves the state after `step` if it is not saved yet, with what the next line needs, and ends the run."""
        if unsaved is not None:
            self._read_window(step)
            self._save(step, unsaved, None)
        self.checkpoints.wait()
        stop.end(signal, f'stopped at step {step}; start the same command again to go on')

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Around what is written after `step`: names it and the last good one if the directory does not take it."""
        try:
            if self.claimed:
                self.claimed.check_there()
            yield
        except (OSError, WorkdirError) as error:
            reason = getattr(error, 'strerror', None) or str(error)
            self.checkpoints.abandon()
            raise WorkdirError(
                f'step {step} cannot be saved in {self.directory}: {reason}; {self.checkpoints.last_good}'
            ) from error

    def _read_window(self, step: int) -> None:
        """Fetches the metrics of the steps up to `step` since the last line."""
        self.window += self.parallel.fetch(self.unread)
        self.unread = []
        for number, metrics in enumerate(self.window, step - len(self.window) + 1):
            for name in ('loss', 'grad_norm'):
                if not np.isfinite(metrics[name]):
                    raise DivergedError(self._diverged(number, name, float(metrics[name])))

    def _log(self, step: int, waited: float) -> None:
        """Writes the means of the metrics since the last line."""
        self._read_window(step)
        window, self.window = self.window, []
        values = {name: float(np.mean([metrics[name] for metrics in window])) for name in window[0]}
        values['epoch'] = step * self.config.batch_size / len(self.experiment.data.train)
        values['learning_rate'] = float(self.experiment.schedule(step - 1))
        speed = self.progress.measure(step, waited)
        self.progress.update(step, values | speed)
        with self._writing(step):
            self.records.write('train', step, values | speed)

    def _diverged(self, step: int, name: str, value: float) -> str:
        self.checkpoints.wait()
        good = self.checkpoints.last_good
        return f'{name} is {value} at step {step}; {good}, in {self.directory}. Try a lower learning rate or clip_norm.'

    def _evaluate(self, state: Any) -> Outcome:
        held_out = self.experiment.data.held_out
        return evaluate(self.eval_step, state.variables, held_out, self.config, self.parallel)

    def _save(self, step: int, state: Any, outcome: Outcome | None) -> None:
        record = self._record(outcome)
        if outcome:
            self.progress.say(f'step {step}: ' + ', '.join(f'{k} {v:.4f}' for k, v in outcome.metrics.items()))
        with self._writing(step):
            if outcome:
                self.records.write('eval', step, outcome.metrics)
            self.records.sync()
        record |= {'lines': self.records.lines}
        if self.window:
            record['window'] = [{name: float(value) for name, value in metrics.items()} for metrics in self.window]
        self.checkpoints.save(self.parallel.fetch(state), record, outcome and record['metrics']['accuracy'])

    def _record(self, outcome: Outcome | None) -> dict[str, Any]:
        """What a checkpoint keeps besides the state: enough to classify without the data set."""
        data = self.experiment.data
        return {
            'metrics': outcome and {name: finite(value) for name, value in outcome.metrics.items()},
            'class_names': list(data.class_names),
            'image_shape': list(self.experiment.image_shape),
        }

    def _conclude(self, state: Any, outcome: Outcome | None, step: int) -> None:
        """Writes the weights and the report of the state after the last step, where they are not whole.

        outcome: of its evaluation if it was trained here, for which there are none yet; else None.
        """
        self.checkpoints.wait()
        if self.claimed and (outcome or not self._has_weights(step)):
            with self._writing(step):
                self._save_weights(state, step)
        if outcome or not is_report(self.directory / 'report.png', step):
            outcome = outcome or self._evaluate(state)
            if self.claimed:
                with self._writing(step):
                    write_report(self.directory, outcome, self.experiment.data, step)

    def _has_weights(self, step: int) -> bool:
        path = self.directory / 'weights.safetensors'
        try:
            read_weights(path)
            return read_metadata(path).get('step') == str(step)
        except (WeightsError, OSError):
            return False

    def _save_weights(self, state: Any, step: int) -> None:
        """What was trained, under torch's names, for flaxzoo.load and for PyTorch."""
        path, data = self.directory / 'weights.safetensors', self.experiment.data
        metadata = {
            'model': self.config.model,
            'class_names': list(data.class_names),
            'data': data.identity(),
            'step': step,
        }
        flaxzoo.save(path, self.parallel.fetch(state.variables), metadata, model=self.experiment.model)
