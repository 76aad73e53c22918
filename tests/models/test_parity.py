"""Every network computes what its torch reference computes: each module's output, loss, gradient and statistic.

Float64 on both sides, random images that are not square, randomised statistics and affine terms.
"""

import pytest

import flaxzoo
import reference
from flaxzoo.analysis.parity import compare, randomise
from tests.models.cases import ALL_MODELS, images, labels

pytestmark = pytest.mark.usefixtures('forget_compiled')


@pytest.mark.parametrize('name', ALL_MODELS)
def test_evaluation(name):
    module = randomise(reference.build(name))
    report = compare(flaxzoo.create(name), module, images(name))
    assert report.error <= 1e-10, report.first_above(1e-10)
    assert {row.kind for row in report.rows} == {'output'}


@pytest.mark.parametrize('name', ALL_MODELS)
def test_training_step(name):
    module = randomise(reference.build(name))
    model = flaxzoo.create(name)
    report = compare(model, module, images(name), train=True, labels=labels(name))
    assert report.error <= 1e-10, report.first_above(1e-10)
    compared = {row.name for row in report.rows if row.kind == 'gradient'}
    assert compared == {key for key, _ in module.named_parameters()}
    compared = {row.name for row in report.rows if row.kind == 'statistic'}
    assert compared == {key for key, _ in module.named_buffers() if 'running' in key}


@pytest.mark.parametrize('name', ALL_MODELS)
def test_float32(name):
    module = randomise(reference.build(name))
    report = compare(flaxzoo.create(name), module, images(name), dtype='float32')
    assert report.error <= 1e-4, report.first_above(1e-4)


def test_every_block_is_compared():
    report = compare(flaxzoo.create('resnet18'), randomise(reference.build('resnet18')), images('resnet18'))
    names = [row.name for row in report.rows]
    assert [f'layer{stage}.{block}' in names for stage in (1, 2, 3, 4) for block in (0, 1)] == [True] * 8
    assert 'layer2.0.downsample.0' in names
    assert names[-1] == 'logits'
