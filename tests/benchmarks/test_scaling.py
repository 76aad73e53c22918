"""The arithmetic behind README's estimate of scaling."""

import pytest

from benchmarks.scaling_paper import MACHINES, Ring, all_reduce_seconds, all_reduces, bytes_sent, efficiencies


def test_one_chip_sends_nothing():
    assert bytes_sent(1e9, [Ring(1, 1e9, 1e-6)]) == [0]
    assert all_reduce_seconds(1e9, [Ring(1, 1e9, 1e-6)]) == 0
    assert all_reduce_seconds(1e9, []) == 0


def test_a_ring_computed_by_hand():
    # 4 chips: each sends 3 pieces of 14 / 4 bytes twice, 21 bytes, at 0.7 x 10 bytes a second; 6 hops of half a second.
    assert bytes_sent(14, [Ring(4, 10, 0.5)]) == pytest.approx([21])
    assert all_reduce_seconds(14, [Ring(4, 10, 0.5)]) == pytest.approx(3 + 3)


def test_levels_computed_by_hand():
    # 2 hosts of 4 chips: then each chip has 14 / 4 bytes, and sends half of them twice, at 0.7 x 1; 2 hops of a second.
    assert all_reduce_seconds(14, [Ring(4, 10, 0.5), Ring(2, 1, 1)]) == pytest.approx(6 + 5 + 2)


@pytest.mark.parametrize('machine', MACHINES, ids=lambda machine: machine.name)
def test_levels_send_as_much_as_one_ring_of_all_chips(machine):
    chips = int(machine.name.split()[0].replace(',', ''))
    assert sum(bytes_sent(1e9, machine.rings)) == pytest.approx(sum(bytes_sent(1e9, [Ring(chips, 1, 0)])))


def test_efficiencies_computed_by_hand():
    assert efficiencies(9, 8, 1) == pytest.approx((9 / 18, 9 / 12))  # the backward pass, 6, hides 6 of the 8
    assert efficiencies(9, 5, 0) == pytest.approx((9 / 14, 1))


def test_the_step_all_reduces_gradients_statistics_and_metrics():
    own, shared = (all_reduces('resnet18', sync) for sync in (False, True))
    channels = 5 * 64 + 5 * 128 + 5 * 256 + 5 * 512  # of its 20 BatchNorm layers
    assert sum(own) == 4 * (11_689_512 + 2 * channels + 2)  # loss and accuracy
    # Mean and variance, forward and backward.
    assert len(shared) - len(own) == 4 * 20
    assert sum(shared) - sum(own) == 4 * 4 * channels
