import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data.digits import Arrays
from train.evaluate import Outcome, evaluate
from train.experiment import normaliser
from train.parallel import MeshParallel, PmapParallel
from train.step import cross_entropy, make_eval_step

RNG = np.random.default_rng(0)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(10, kernel_init=nn.initializers.normal(1.0))(x.reshape(len(x), -1))


@pytest.mark.parametrize('parallel', [PmapParallel, MeshParallel])
@pytest.mark.parametrize(('count', 'batch_size'), [(37, 16), (37, 5), (3, 64), (16, 16), (17, 1)])
def test_every_image_counts_once(tiny_config, parallel: type[MeshParallel], count: int, batch_size: int):
    source = Arrays(RNG.integers(0, 255, (count, 4, 4, 1), dtype=np.uint8), RNG.integers(0, 10, count))
    tiny_config.eval_batch_size = batch_size
    model, normalise, parallel = Linear(), normaliser(tiny_config), parallel()
    assert parallel.device_count == 8
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    step = parallel.compile(make_eval_step(model, normalise))
    outcome = evaluate(step, parallel.replicate(variables), source, tiny_config, parallel)
    logits = model.apply(variables, normalise(jnp.asarray(source.images)))
    np.testing.assert_array_equal(outcome.label, source.labels)
    np.testing.assert_array_equal(outcome.predicted, logits.argmax(-1))
    np.testing.assert_allclose(outcome.confidence, jax.nn.softmax(logits).max(-1), rtol=1e-5)
    np.testing.assert_allclose(outcome.loss, cross_entropy(logits, source.labels, 0.0), rtol=1e-4, atol=1e-6)
    order = np.argsort(-np.asarray(logits), -1)
    np.testing.assert_array_equal(outcome.rank, np.argmax(order == source.labels[:, None], -1))
    metrics = outcome.metrics
    assert metrics['accuracy'] == pytest.approx(float((logits.argmax(-1) == source.labels).mean()))
    assert metrics['top5'] == pytest.approx((order[:, :5] == source.labels[:, None]).any(-1).mean())
    assert metrics['loss'] == pytest.approx(float(cross_entropy(logits, source.labels, 0.0).mean()), rel=1e-5)


def test_the_synchronised_network_evaluates_with_its_running_statistics(tiny_config):
    from train.state import build_model

    source = Arrays(RNG.integers(0, 255, (5, 8, 8, 1), dtype=np.uint8), RNG.integers(0, 10, 5))
    model, normalise, parallel = build_model(tiny_config, 10), normaliser(tiny_config), MeshParallel()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    step = parallel.compile(make_eval_step(model, normalise))
    outcome = evaluate(step, parallel.replicate(variables), source, tiny_config, parallel)
    logits = jax.jit(lambda x: model.apply(variables, normalise(x)))(source.images)
    np.testing.assert_allclose(outcome.loss, cross_entropy(logits, source.labels, 0.0), rtol=1e-4)


def test_a_network_that_says_nan_is_never_right():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            return jnp.full((len(x), 10), jnp.nan)

    parallel = MeshParallel()
    step = parallel.compile(make_eval_step(Broken(), lambda images: images.astype(jnp.float32)))
    batch = {'image': np.zeros((8, 2, 2, 1), np.uint8), 'label': np.arange(8, dtype=np.int32)}
    outcome = Outcome(**parallel.fetch(step({}, parallel.shard(batch))), index=batch['label'])
    assert outcome.metrics['top5'] == 0
