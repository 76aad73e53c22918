"""One training step and one evaluation step: pure functions, written once against the axis name 'batch'.

`parallel.py` maps them over devices. Images arrive as uint8 and are augmented and normalised here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from train.parameters import frozen_paths
from train.state import TrainState

Batch = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    normalise: Callable[[jax.Array], jax.Array],
    seed: int = 0,
    label_smoothing: float = 0.0,
    ema_decay: float = 0.0,
    freeze: Sequence[str] = (),
) -> Step:
    """(state, batch) -> (state, metrics), to be mapped over an axis 'batch' of devices.

    Args:
      augment: (keys (n,), uint8 images (n, H, W, C)) -> images.
      normalise: images -> floating images in the dtype of the computation.
      freeze: the config's; no gradient of these parameters is computed, and `tx` gives them no update.

    A device's `batch` is {'image': uint8 (n, H, W, C), 'label': int (n,)}; metrics are scalars over all devices.
    Augmentation depends on (seed, step, row of the global batch), so it is the same for any number of devices;
    dropout depends on (seed, step, device).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        images, label = batch['image'], batch['label']
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        rows = lax.axis_index('batch') * len(images) + jnp.arange(len(images))
        images = normalise(augment(jax.vmap(jax.random.fold_in, (None, 0))(augment_key, rows), images))
        dropout_key = jax.random.fold_in(dropout_key, lax.axis_index('batch'))

        trained = flatten_dict(state.params)
        frozen = {path: trained.pop(path) for path in frozen_paths(state.params, freeze)}

        def loss_fn(trained: dict[tuple, jax.Array]) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            variables = {'params': unflatten_dict(trained | frozen), 'batch_stats': state.batch_stats}
            outputs, updated = model.apply(
                variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': dropout_key}
            )
            logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = cross_entropy(logits, label, label_smoothing).mean()
            for aux in auxiliary:
                loss += model.aux_weight * cross_entropy(aux, label, label_smoothing).mean()
            return loss, (updated.get('batch_stats', {}), logits)

        (loss, (batch_stats, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        accuracy = (logits.argmax(-1) == label).mean()
        # Without synchronised BatchNorm the devices' running statistics differ. Their update is linear and training
        # does not read them, so averaging at each step gives what averaging once before evaluation would.
        grads, batch_stats, loss, accuracy = lax.pmean((grads, batch_stats, loss, accuracy), 'batch')
        grad_norm = optax.tree.norm(grads)
        grads = unflatten_dict(grads | jax.tree.map(jnp.zeros_like, frozen))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update({'params': params, 'batch_stats': batch_stats}, ema, 1 - ema_decay)
        state = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return state, {'loss': loss, 'accuracy': accuracy, 'grad_norm': grad_norm}

    return train_step


def make_eval_step(model: nn.Module, normalise: Callable[[jax.Array], jax.Array]) -> Callable[..., Batch]:
    """(variables, batch) -> what became of each image of the global batch, the same on every device.

    The result is {'label', 'predicted', 'confidence', 'loss', 'rank'}, each (N,): the probability of the predicted
    class, the cross-entropy, and how many classes scored higher than the true one.
    """

    def eval_step(variables: dict[str, Any], batch: Batch) -> Batch:
        label = batch['label']
        logits = model.apply(variables, normalise(batch['image']))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        true = jnp.take_along_axis(logits, label[:, None], axis=-1)
        records = {
            'label': label,
            'predicted': logits.argmax(-1),
            'confidence': jax.nn.softmax(logits).max(-1),
            'loss': cross_entropy(logits, label, 0.0),
            'rank': jnp.sum(~(logits <= true), -1),  # a NaN counts as a higher score, not as a hit
        }
        return lax.all_gather(records, 'batch', tiled=True)

    return eval_step


def cross_entropy(logits: jax.Array, label: jax.Array, label_smoothing: float) -> jax.Array:
    """Cross-entropy of each image against the smoothed label, as torch's: (N, classes), (N,) -> (N,).

    Computed in float32 or wider.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, target.astype(logits.dtype))
