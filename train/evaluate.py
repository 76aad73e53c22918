"""Evaluation that counts every image once, for any batch size and any number of devices and processes."""

import collections
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from train.data.pipeline import NOT_COUNTED, eval_batches
from train.data.source import Source
from train.parallel import MeshParallel
from train.prefetch import Prefetcher

logger = logging.getLogger('train')


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of each held-out image that can be read, in the source's order: arrays (N,), see step.make_eval_step.

    index: where each is in the source.
    """

    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    rank: np.ndarray
    index: np.ndarray

    @property
    def metrics(self) -> dict[str, float]:
        """Mean loss, and the shares of images whose class came first and among the first five."""
        return {
            'loss': float(self.loss.mean(dtype=np.float64)),
            'accuracy': float((self.predicted == self.label).mean()),
            'top5': float((self.rank < 5).mean()),
        }


def evaluate(
    eval_step: Callable, variables: Any, source: Source, config: ConfigDict, parallel: MeshParallel
) -> Outcome:
    """Runs the compiled `eval_step` over all images of `source`; every process gets the whole outcome.

    The last batch is filled up to a size that divides over the devices, and the filling is cut off again.
    """
    rows = parallel.rows(config.eval_batch_size or config.batch_size)
    running, done = collections.deque(), []
    with Prefetcher(eval_batches(source, config, rows), parallel.shard) as batches:
        for batch in batches:
            running.append(eval_step(variables, batch))
            if len(running) > parallel.run_ahead:
                done.append(parallel.fetch(running.popleft()))
    done.extend(parallel.fetch(records) for records in running)
    records = {n: np.concatenate([part[n] for part in done])[: len(source)] for n in done[0]}
    counted = records['label'] != NOT_COUNTED
    if not counted.all():
        logger.warning('%d of %d held-out images cannot be read and do not count', (~counted).sum(), len(source))
    return Outcome(**{n: array[counted] for n, array in records.items()}, index=np.flatnonzero(counted))
