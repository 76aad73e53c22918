"""`compare` itself: whatever drops is off, whatever layout a module has is read, nothing that differs is lost."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm.layers
import torch
import torchvision
from torch.nn.functional import dropout
from torchvision.ops import stochastic_depth

import flaxzoo
from flaxzoo.analysis.flax_side import without_dropout
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.layers import Conv2d, Dropout, Linear, StochasticDepth

X = np.random.default_rng(0).normal(size=(6, 4, 5, 3))
Y = np.array([0, 1, 2, 3, 2, 1])


class Lambda(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, self.training)


class Torch(torch.nn.Module):
    """A convolution, a norm, something that drops, a pool and a head."""

    def __init__(self, drop=None):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(8)
        self.drop = drop or torch.nn.Identity()
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.drop(self.bn(self.conv(x)).relu()).mean((2, 3)))


class Flax(nn.Module):
    """Somebody's own port, of flax's layers; it has no image_size."""

    drop: nn.Module | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), name='conv')(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name='bn')(x))
        if isinstance(self.drop, nn.Dropout):
            x = self.drop(x, deterministic=not train)
        elif self.drop:
            x = self.drop(x, train)
        return nn.Dense(4, name='fc')(x.mean((1, 2)))


def gradients(model, module):
    """The largest error of a step but for the running variance, which flax keeps biased."""
    report = compare(model, randomise(module), X, train=True, labels=Y)
    return max(row.error for row in report.rows if row.name != 'bn.running_var')


DROPS = {
    'Dropout': torch.nn.Dropout(0.5),
    'Dropout2d': torch.nn.Dropout2d(0.5),
    'AlphaDropout': torch.nn.AlphaDropout(0.5),
    'FeatureAlphaDropout': torch.nn.FeatureAlphaDropout(0.5),
    'StochasticDepth': torchvision.ops.StochasticDepth(0.5, 'row'),
    'DropBlock2d': torchvision.ops.DropBlock2d(0.3, 3),
    "timm's DropBlock2d": timm.layers.DropBlock2d(0.3, 3),
    'DropPath': timm.layers.DropPath(0.5),
    'DropPath that does not rescale': timm.layers.DropPath(0.5, scale_by_keep=False),
    'F.dropout': Lambda(lambda x, train: torch.nn.functional.dropout(x, 0.5, train)),
    'dropout by another name': Lambda(lambda x, train: dropout(x, 0.5, train)),
    'in place': Lambda(lambda x, train: torch.nn.functional.dropout(2 * x, 0.5, train, inplace=True) / 2),
    'F.dropout2d': Lambda(lambda x, train: torch.nn.functional.dropout2d(x, 0.5, train)),
    'stochastic_depth': Lambda(lambda x, train: stochastic_depth(x, 0.5, 'row', train)),
    'drop_path': Lambda(lambda x, train: timm.layers.drop_path(x, 0.5, train)),
}


@pytest.mark.parametrize('name', DROPS)
def test_torchs_dropout_is_off(name):
    module = Torch(DROPS[name])
    state = torch.get_rng_state()
    assert gradients(Flax(), module) < 1e-10
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert DROPS[name].training


class DropPath(nn.Module):
    """As many ports write it."""

    @nn.compact
    def __call__(self, x, train):
        return x * jax.random.bernoulli(self.make_rng('dropout'), 0.5, (len(x), 1, 1, 1)) if train else x


@pytest.mark.parametrize('drop', [nn.Dropout(0.5), Dropout(0.5), StochasticDepth(0.5), DropPath()])
def test_flaxs_dropout_is_off(drop):
    assert gradients(Flax(drop), Torch(torch.nn.Dropout(0.5))) < 1e-10


class Noise(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x + jax.random.normal(self.make_rng('dropout'), x.shape)


def test_what_cannot_be_switched_off_is_said():
    with pytest.raises(ValueError, match=r'a module of Flax draws random numbers; .* only dropout that is a module'):
        compare(Flax(Noise()), Torch(), X, train=True, labels=Y)


def test_a_dropout_where_torch_has_none_is_no_other_function():
    """What is off on our side must be off in torch, not on."""

    class Scaled(torch.nn.Module):
        def forward(self, x):
            return 0.5 * x

    assert gradients(Flax(nn.Dropout(0.5)), Torch(Scaled())) > 1e-3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'train': True}, r'a training step needs labels: class indices \(N,\)'),
        ({'labels': Y}, 'train=True is missing'),
        ({'train': True, 'labels': Y[:2]}, r'labels are 6 class indices, .* got an array of int64\[2\]'),
        ({'train': True, 'labels': np.eye(6, 4)}, r'got an array of float64\[6, 4\]'),
        ({'train': True, 'labels': Y + 1}, 'labels are class indices from 0 to 3, got 1 to 4'),
        ({'train': True, 'labels': Y - 100}, 'got -100 to -97'),
        ({'dtype': 'bfloat16'}, "dtype is 'float64' or 'float32', got 'bfloat16'"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compare(Flax(), Torch(), X, **options)


def test_a_step_needs_logits():
    with pytest.raises(ValueError, match=r'a training step needs logits \(N, classes\), .* gives \(6, 8, 4, 5\)'):
        compare(Conv2d(8, 3, padding=1), torch.nn.Conv2d(3, 8, 3, padding=1), X, train=True, labels=Y)


class Attention(nn.Module):
    """`torch.nn.MultiheadAttention` of one input: (N, L, E) -> (N, L, E) and the weights (N, L, L)."""

    heads: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        weight = self.param('in_proj_weight', nn.initializers.normal(), (3 * width, width))
        bias = self.param('in_proj_bias', nn.initializers.zeros, (3 * width,))
        q, k, v = jnp.split((x @ weight.T + bias).reshape(*x.shape[:2], 3 * self.heads, -1), 3, axis=2)
        scores = jax.nn.softmax(jnp.einsum('nqhd,nkhd->nhqk', q, k) / np.sqrt(q.shape[-1]))
        out = jnp.einsum('nhqk,nkhd->nqhd', scores, v).reshape(x.shape)
        return Linear(width, name='out_proj')(out), scores.mean(1)


class TorchTokens(torch.nn.Module):
    """Pixels as tokens, normalised in NHWC, attention with dropout, a head."""

    def __init__(self, need_weights=True):
        super().__init__()
        self.ln = torch.nn.LayerNorm(3)
        self.embed = torch.nn.Linear(3, 8)
        self.attention = torch.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.fc = torch.nn.Linear(8, 4)
        self.need_weights = need_weights

    def forward(self, x):
        x = self.embed(self.ln(x.permute(0, 2, 3, 1))).flatten(1, 2)
        return self.fc(self.attention(x, x, x, need_weights=self.need_weights)[0].mean(1))


class FlaxTokens(nn.Module):
    def setup(self):
        self.ln = nn.LayerNorm(epsilon=1e-5)
        self.embed, self.attention, self.fc = Linear(8), Attention(2), Linear(4)

    def __call__(self, x):
        x = self.embed(self.ln(x))
        return self.fc(self.attention(x.reshape(len(x), -1, 8))[0].mean(1))


@pytest.mark.parametrize('need_weights', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_tokens_channels_last_and_tuples(train, need_weights):
    module = randomise(TorchTokens(need_weights))
    report = compare(FlaxTokens(), module, X, train=train, labels=Y if train else None)
    assert report.error < 1e-10, str(report)
    shapes = {row.name: row.shape for row in report.rows if row.kind == 'output'}
    assert shapes == {
        'ln': (6, 4, 5, 3),
        'embed': (6, 4, 5, 8),
        'attention': (6, 20, 8),
        'fc': (6, 4),
        'logits': (6, 4),
    }
    assert report.unmatched == ('attention.out_proj',)  # torch reads its weights without calling it
    assert 'attention.out_proj  not in torch' in str(report)
    assert {row.name for row in report.rows if row.kind == 'gradient'} == (
        {name for name, _ in module.named_parameters()} if train else set()
    )


def test_flaxs_attention_drops_nothing():
    attention, tokens = nn.MultiHeadDotProductAttention(1, dropout_rate=0.5), jnp.asarray(X[0])
    variables = attention.init(jax.random.key(0), tokens, deterministic=True)
    with nn.intercept_methods(without_dropout):
        out = attention.apply(variables, tokens, deterministic=False)
    chex.assert_trees_all_close(out, attention.apply(variables, tokens, deterministic=True), atol=1e-6)
    assert attention.dropout_rate == 0.5


def test_where_both_layouts_fit_the_better_counts_and_is_marked():
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 3))

    class TorchBoth(torch.nn.Module):
        def __init__(self, layer, permute):
            super().__init__()
            self.layer, self.permute = layer, permute

        def forward(self, x):
            return self.layer(x.permute(0, 2, 3, 1) if self.permute else x)

    class FlaxBoth(nn.Module):
        layer: nn.Module

        def __call__(self, x):
            return self.layer(x)

    for model, module in (
        (FlaxBoth(Conv2d(3, 1)), TorchBoth(torch.nn.Conv2d(3, 3, 1), permute=False)),
        (FlaxBoth(Linear(3)), TorchBoth(torch.nn.Linear(3, 3), permute=True)),
    ):
        report = compare(model, module, x)
        assert report.error < 1e-10
        assert [row.ambiguous for row in report.rows] == [True, True]
        assert 'channels first or last' in str(report)
        assert compare(model, module, x[:, :2]).error < 1e-10
        assert not any(row.ambiguous for row in compare(model, module, x[:, :2]).rows)


class TorchUnused(torch.nn.Module):
    """Of two heads one is not used, or both are."""

    def __init__(self, both):
        super().__init__()
        self.fc, self.other, self.both = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4), both

    def forward(self, x):
        x = x.mean((2, 3))
        return self.fc(x) + self.other(x) if self.both else self.fc(x)


class FlaxUnused(nn.Module):
    both: bool

    @nn.compact
    def __call__(self, x):
        x = x.mean((1, 2))
        out, other = Linear(4, name='fc')(x), Linear(4, name='other')(x)
        return out + other if self.both else out


@pytest.mark.parametrize('ours', [False, True])
@pytest.mark.parametrize('theirs', [False, True])
def test_a_gradient_that_one_side_lacks_is_reported(ours, theirs):
    report = compare(FlaxUnused(ours), TorchUnused(theirs), X, train=True, labels=Y)
    errors = {row.name: row.error for row in report.rows if row.kind == 'gradient'}
    assert errors.keys() == {'fc.weight', 'fc.bias', 'other.weight', 'other.bias'}
    assert (errors['other.weight'] < 1e-10) == (ours == theirs)


def test_parameters_that_torch_froze_have_gradients_here():
    module = Torch()
    module.conv.requires_grad_(False)
    assert gradients(Flax(), module) < 1e-10
    assert not module.conv.weight.requires_grad


def test_every_call_of_a_shared_module_is_compared():
    class TorchShared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    class FlaxShared(nn.Module):
        slope: float = 1.0

        @nn.compact
        def __call__(self, x):
            conv = Conv2d(3, 3, padding=1, name='conv')
            return conv(self.slope * conv(x))

    report = compare(FlaxShared(), TorchShared(), X)
    assert [row.name for row in report.rows] == ['conv', 'conv (call 2)', 'logits']
    assert report.error < 1e-10
    assert compare(FlaxShared(2.0), TorchShared(), X).first_above(1e-10).name == 'conv (call 2)'


def test_recomputed_blocks_are_compared_as_others():
    fields = {'layers': (1, 1, 1, 1), 'num_classes': 4}
    module = randomise(torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4))
    x = np.random.default_rng(0).normal(size=(2, 33, 37, 3))
    plain, recomputed = (
        compare(flaxzoo.create('resnet18', remat=remat, **fields), module, x, train=True, labels=Y[:2])
        for remat in (False, True)
    )
    assert max(plain.error, recomputed.error) < 1e-10
    assert [row.name for row in plain.rows] == [row.name for row in recomputed.rows]


def test_a_network_with_stochastic_depth():
    class TorchResidual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Linear(3, 4)
            self.stochastic_depth = torchvision.ops.StochasticDepth(0.9, 'batch')

        def forward(self, x):
            return self.fc((x + self.stochastic_depth(self.conv(x))).mean((2, 3)))

    class FlaxResidual(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            branch = nn.remat(Conv2d)(3, 3, padding=1, name='conv')(x)
            x = x + StochasticDepth(0.9, 'batch', name='stochastic_depth')(branch, train)
            return Linear(4, name='fc')(x.mean((1, 2)))

    report = compare(FlaxResidual(), randomise(TorchResidual()), X, train=True, labels=Y)
    assert report.error < 1e-10


def test_the_module_is_left_as_it_was():
    module = Torch(torch.nn.Dropout(0.5)).eval()
    before = {name: tensor.clone().numpy() for name, tensor in module.state_dict().items()}
    compare(Flax(), module, X, train=True, labels=Y)
    chex.assert_trees_all_equal({name: tensor.numpy() for name, tensor in module.state_dict().items()}, before)
    assert not module.training
    assert not any(child._forward_hooks for child in module.modules())
