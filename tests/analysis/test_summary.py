"""Parameters and multiply-adds against those torchvision publishes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import torchvision

import flaxzoo
from flaxzoo.analysis.summary import summarize
from flaxzoo.layers import Linear


@pytest.mark.parametrize('name', [n for n in flaxzoo.list_models() if n in torchvision.models.list_models()])
def test_costs_are_those_published(name):
    model = flaxzoo.create(name)
    releases = torchvision.models.get_model_weights(name)
    weights = next(w for w in releases if w.transforms.keywords['crop_size'] == model.image_size)
    costs = summarize(model)
    assert costs.macs / 1e9 == pytest.approx(weights.meta['_ops'], abs=6e-4)
    # Torchvision's figure for GoogLeNet is that of its weights, which carry the auxiliary heads no more.
    if name != 'googlenet':
        assert costs.parameters == weights.meta['num_params']


def test_multiply_adds_follow_the_image():
    model = flaxzoo.create('resnet18')
    small, large = (summarize(model, (1, size, size, 3)) for size in (64, 128))
    assert small.parameters == large.parameters
    head = 512 * 1000
    assert large.macs - head == 4 * (small.macs - head)


@pytest.mark.parametrize('name', ['resnet18', 'squeezenet1_1', 'googlenet', 'vgg11'])
def test_a_network_without_a_head_costs_less_by_its_head(name):
    whole, headless = (summarize(flaxzoo.create(name, num_classes=n)) for n in (1000, 0))
    assert 0 < headless.parameters < whole.parameters
    assert 0 < headless.macs < whole.macs


def test_the_head_is_all_that_is_missing():
    whole, headless = (summarize(flaxzoo.create('resnet18', num_classes=n)) for n in (1000, 0))
    assert whole.macs - headless.macs == 512 * 1000
    assert whole.parameters - headless.parameters == 512 * 1000 + 1000


def test_recomputed_blocks_cost_the_same():
    plain, recomputed = (summarize(flaxzoo.create('resnext50_32x4d', remat=remat)) for remat in (False, True))
    assert plain == recomputed


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Conv(6, (3, 3), feature_group_count=3, padding='SAME')(x), None


class Parts(nn.Module):
    """Everything that multiplies, of a user's own network."""

    @nn.compact
    def __call__(self, x):
        n, h, w, _ = x.shape
        x = nn.Conv(6, (3, 3), padding='SAME')(x)  # h w 9 c 6
        x = nn.scan(Scanned, variable_axes={'params': 0}, split_rngs={'params': True}, length=4)()(x, None)[
            0
        ]  # 4 h w 9 2 6
        x = nn.remat(Linear)(8)(x).reshape(n, h * w, 8)  # h w 6 8
        scores = jax.jit(lambda x: jnp.einsum('nqc,nkc->nqk', x, x))(x)  # (h w)^2 8
        x = jax.lax.cond(x.sum() > 0, lambda x: scores @ x, lambda x: x, x)  # (h w)^2 8
        return nn.relu(x).mean(1) @ self.param('w', nn.initializers.ones, (8, 5))  # 8 5


def test_everything_that_multiplies_counts_once():
    h, w, c = 4, 5, 2
    expected = h * w * 9 * c * 6 + 4 * h * w * 9 * 2 * 6 + h * w * 6 * 8 + 2 * (h * w) ** 2 * 8 + 8 * 5
    assert summarize(Parts(), (1, h, w, c)).macs == expected
