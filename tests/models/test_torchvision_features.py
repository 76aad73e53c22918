"""Feature maps are those of torchvision's extractor by its names, in evaluation and training, statistics included."""

import copy

import jax
import numpy as np
import pytest
import timm
import torch
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import flaxzoo
import reference
from flaxzoo.analysis.parity import randomise
from tests.compiling import jit
from tests.models.cases import images

pytestmark = pytest.mark.usefixtures('forget_compiled')

NAMES = [
    'densenet121',
    'mobilenet_v3_small',
    pytest.param('efficientnet_v2_s', marks=pytest.mark.slow),
    'efficientnet_b0',
]
# Nodes that are no map of ours: sums, which are the maps of their blocks, and pools of size 1x1, which are `flatten`.
NODES = ('x', 'add', 'avgpool', 'adaptive_avg_pool2d')
# torchvision's extractor returns the tensor after a ReLU has overwritten it.
OVERWRITTEN = 'features.norm5'
TIMM = {
    'densenet121': 'densenet121',
    'densenet161': 'densenet161',
    'mobilenet_v3_small': 'mobilenetv3_small_100',
    'mobilenet_v3_large': 'mobilenetv3_large_100',
    'efficientnet_b0': 'efficientnet_b0',
    'efficientnet_b4': 'efficientnet_b4',
    'efficientnet_v2_s': 'efficientnetv2_s',
}


def still(module):
    """The module with nothing dropped at random and nothing overwritten."""
    for child in module.modules():
        if hasattr(child, 'inplace'):
            child.inplace = False
        if type(child).__name__ in ('Dropout', 'StochasticDepth'):
            child.p = 0.0
    return module


def quiet(name):
    """Our network with nothing dropped at random."""
    off = {'dropout': 0.0, 'stochastic_depth_prob': 0.0}
    model = flaxzoo.create(name)
    return model.clone(**{field: rate for field, rate in off.items() if hasattr(model, field)})


def extracted(module, names, x, train):
    """The maps of torchvision's extractor and its buffers after the run."""
    extract = create_feature_extractor(copy.deepcopy(module), names, suppress_diff_warning=True).train(train)
    with torch.no_grad():
        maps = extract(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return {name: np.moveaxis(value.numpy(), 1, -1) for name, value in maps.items()}, extract.state_dict()


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_every_map_that_torchvision_names(name, train):
    module, model, x = still(randomise(reference.build(name)).double()), quiet(name), images(name)
    nodes = get_graph_node_names(module, suppress_diff_warning=True)[0 if train else 1]
    known = flaxzoo.feature_names(model)
    assert {node for node in nodes if node.split('.')[-1] not in NODES} <= set(known)
    names = [name for name in known if name in nodes and name != OVERWRITTEN]
    theirs, buffers = extracted(module, names, x, train)
    theirs |= extracted(module, [*model.stages], x, train)[0]  # by themselves: some are nodes under another name
    with jax.enable_x64(True):
        variables = flaxzoo.from_torch(model, module.state_dict())
        run = jit(lambda v, x: flaxzoo.features(model, v, x, [*theirs], train=train, mutable=['batch_stats']))
        ours, updated = run(variables, x)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-10 * np.abs(value).max(), err_msg=key)
    statistics = flaxzoo.to_torch(updated)
    assert statistics.keys() == {key for key in buffers if 'running' in key}
    for key, value in statistics.items():
        np.testing.assert_allclose(value, buffers[key].numpy(), rtol=1e-10, atol=1e-10, err_msg=key)


@pytest.mark.parametrize('name', TIMM)
def test_stages_are_timms(name):
    with torch.device('meta'):
        theirs = timm.create_model(TIMM[name], features_only=True).feature_info
    ours = flaxzoo.feature_info(name)
    assert [(stage.channels, stage.stride) for stage in ours] == [
        *zip(theirs.channels(), theirs.reduction(), strict=True)
    ]
