"""ResNet's own options, against torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torchvision.models.resnet import Bottleneck, ResNet

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.weights.convert import template, torch_names
from tests.compiling import jit
from tests.models.cases import images, labels


@pytest.mark.parametrize('dilate', [(False, False, True), (False, True, True), (True, False, True)])
def test_dilation_instead_of_stride(dilate):
    module = randomise(ResNet(Bottleneck, [1, 2, 2, 2], replace_stride_with_dilation=list(dilate)))
    model = flaxzoo.create('resnet50', layers=(1, 2, 2, 2), replace_stride_with_dilation=dilate)
    report = compare(model, module, images('resnet50'))
    assert report.error <= 1e-10, report.first_above(1e-10)
    shapes = {row.name: row.shape for row in report.rows}
    size = [13, 17]  # after the stem and its pool
    for dilated in dilate:
        size = [n if dilated else -(-n // 2) for n in size]
    assert shapes['layer4.1'][1:3] == tuple(size)


def test_the_space_to_depth_stem_computes_the_same():
    with jax.enable_x64(True):
        x = jnp.asarray(images('resnet50'), jnp.float64)
        plain, blocks = (
            flaxzoo.create('resnet50', layers=(1, 1, 1, 1), stem=s) for s in ('imagenet', 'space_to_depth')
        )
        variables = jit(plain.init)(jax.random.key(0), x)
        a, b = (jit(model.apply)(variables, x) for model in (plain, blocks))
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(a).max())


def test_zero_init_residual_starts_as_the_identity():
    model = flaxzoo.create('resnet50', layers=(1, 1, 1, 1), zero_init_residual=True)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
    for stage in (1, 2, 3, 4):
        block = params[f'layer{stage}.0']
        assert not block['bn3']['scale'].any()
        assert block['bn2']['scale'].all()
        assert block['downsample.1']['scale'].all()


def test_initial_values_are_distributed_as_torchs():
    """Kaiming normal by fan-out for convolutions, ones and zeros for norms, torch's uniform for the head."""
    module = ResNet(Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=16)
    model = flaxzoo.create('resnet50', layers=(1, 1, 1, 1), groups=4, width_per_group=16)
    ours = flaxzoo.to_torch(model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    for name, theirs in module.state_dict().items():
        if 'num_batches' in name:
            continue
        theirs = theirs.numpy()
        assert ours[name].std() == pytest.approx(theirs.std(), rel=0.1, abs=1e-6), name
        assert abs(ours[name].mean() - theirs.mean()) <= 5 * (theirs.std() or 1e-7) * (2 / theirs.size) ** 0.5, name


def test_a_squeeze_and_excitation_block_is_an_option():
    plain, se = (set(_keys(flaxzoo.create(name, layers=(1, 1, 1, 1)))) for name in ('resnet50', 'seresnet50'))
    assert plain < se
    assert {key.split('.')[2] for key in se - plain} == {'se'}


def test_statistics_can_be_frozen_while_the_rest_trains():
    model = flaxzoo.create('resnet18', num_classes=10, freeze_batch_norm=True)
    x = jnp.asarray(images('resnet18'), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    @jax.jit
    def step(params):
        out, new = model.apply({**variables, 'params': params}, x, train=True, mutable=['batch_stats'])
        return -jax.nn.log_softmax(out)[jnp.arange(2), labels('resnet18')].mean(), new['batch_stats']

    grads, stats = jax.grad(step, has_aux=True)(variables['params'])
    jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def _keys(model):
    return torch_names(template(model))
