"""The benchmark of start-up: that each measurement runs and gives times, not how long they are."""

import pytest

from benchmarks.startup import in_a_fresh_process


@pytest.mark.parametrize(
    ('measurement', 'arguments', 'count'),
    [('imported', [], 4), ('initialised', [], 1), ('step', ['resnet18'], 3)],
)
def test_a_measurement(measurement, arguments, count):
    measured = in_a_fresh_process(measurement, *arguments)
    assert len(measured) == count
    assert all(value > 0 for value in measured.values())
