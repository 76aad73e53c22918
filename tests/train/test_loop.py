"""Whole runs, most of them in processes of their own: killed, resumed, refused, diverging."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxzoo
from train import workdir
from train.checkpoint import Checkpoints
from train.data.digits import open_digits
from train.errors import UserError
from train.experiment import abstract_state
from train.loop import DivergedError, train
from train.records import Progress, read_metrics
from train.report import is_report
from train.state import TrainState, build_model, initial_variables
from train.workdir import WorkdirError

from .conftest import finish, make_tiny_config, write_config

TOTAL = 67  # three epochs of 1,433 images in batches of 64


def run_config():
    """Three epochs, a checkpoint every three steps, all of them kept."""
    config = make_tiny_config()
    config.epochs, config.checkpoint_every_steps, config.keep_checkpoints = 3, 3, 100
    config.compilation_cache = True
    return config


def final_state(directory: Path) -> TrainState:
    target = abstract_state(run_config(), build_model(run_config(), 10), (8, 8, 1))
    return Checkpoints(directory / 'checkpoints').restore(TOTAL, target)[0]


def lines(directory: Path) -> list[dict]:
    """metrics.jsonl without what depends on the machine's speed."""
    speed = ('images_per_second', 'input_wait')
    return [{k: v for k, v in record.items() if k not in speed} for record in read_metrics(directory / 'metrics.jsonl')]


@pytest.fixture(scope='module')
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`python -m train --config ... --workdir`, without the directory."""
    path = write_config(tmp_path_factory.mktemp('config') / 'run.py', run_config())
    return ['-m', 'train', '--config', str(path), '--workdir']


@pytest.fixture(scope='module')
def finished(command: list[str], start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing disturbed."""
    directory = tmp_path_factory.mktemp('runs') / 'finished'
    output = finish(start(*command, str(directory)))
    assert f'step {TOTAL}/{TOTAL}' in output
    assert 'held-out accuracy' in output
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / 'copy')


def test_a_run_leaves_all_its_records(finished: Path):
    steps = Checkpoints(finished / 'checkpoints').steps
    assert steps == sorted({*range(3, TOTAL, 3), 22, 45, TOTAL})
    records = lines(finished)
    assert [r['step'] for r in records if r['kind'] == 'eval'] == [22, 45, TOTAL]
    expected = sorted({*steps, *range(5, TOTAL, 5)})
    assert [r['step'] for r in records if r['kind'] == 'train'] == expected
    assert records[-2]['loss'] < records[0]['loss']
    assert records[-1]['accuracy'] > 0.2  # chance is 0.1, and six seeds gave 0.30 to 0.51
    assert (finished / 'report.png').stat().st_size > 10_000
    assert list((finished / 'tensorboard').iterdir())
    assert final_state(finished).step == TOTAL


def test_the_weights_of_a_run_are_loaded_by_name(finished: Path):
    path = finished / 'weights.safetensors'
    _, variables = flaxzoo.load('resnext29_32x4d', path, in_channels=1, **run_config().model_fields.to_dict())
    jax.tree.map(np.testing.assert_array_equal, variables, final_state(finished).variables)
    # Another run starts from them; three classes take a new head.
    config = run_config()
    config.init_from = str(path)
    model = build_model(config, 3)
    start = initial_variables(config, model, (8, 8, 1))
    assert start['params']['fc']['kernel'].shape == (256, 3)
    np.testing.assert_array_equal(start['params']['conv1']['kernel'], variables['params']['conv1']['kernel'])
    config.init_from = str(path.with_name('none.safetensors'))
    with pytest.raises(UserError, match=r'config\.init_from: there is no file'):
        initial_variables(config, model, (8, 8, 1))


def test_the_weights_of_a_run_say_their_network(finished: Path):
    path = finished / 'weights.safetensors'
    model, _ = flaxzoo.load(path, in_channels=1)
    assert flaxzoo.with_policy(model, axis_name='batch') == build_model(run_config(), 10)
    config = run_config()
    config.init_from, config.model_fields = str(path), {}
    with pytest.raises(UserError, match=r'its network has layers = .*: set config\.model_fields'):
        initial_variables(config, build_model(config, 10), (8, 8, 1))


def wait_for(condition, process) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


@pytest.mark.parametrize(
    ('moment', 'number'),
    [
        ('training', signal.SIGKILL),
        ('saving', signal.SIGKILL),
        ('training', signal.SIGTERM),
        pytest.param('saving', signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_killed_or_stopped_run_ends_with_the_same_parameters(
    command: list[str], start, finished: Path, tmp_path: Path, moment: str, number: signal.Signals
):
    directory = tmp_path / 'killed'
    conditions = {
        'training': lambda: any(r['step'] >= 10 for r in read_metrics(directory / 'metrics.jsonl')),
        'saving': lambda: (
            len(os.listdir(directory / 'checkpoints')) > 4
            and any('tmp' in name for name in os.listdir(directory / 'checkpoints'))
        ),
    }
    process = start(*command, str(directory))
    wait_for((directory / 'checkpoints').is_dir, process)
    wait_for(conditions[moment], process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    last = max(Checkpoints(directory / 'checkpoints').steps)
    assert last < TOTAL
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert output.splitlines()[-1] == f'stopped at step {last}; start the same command again to go on'
    output = finish(start(*command, str(directory)))
    assert 'found the checkpoint of step' in output
    jax.tree.map(np.testing.assert_array_equal, final_state(directory), final_state(finished))
    assert lines(directory) == lines(finished)


def test_a_finished_run_says_so_and_changes_nothing(command: list[str], start, finished: Path):
    def contents() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in (finished / 'checkpoints').rglob('*')}

    before, metrics = contents(), lines(finished)
    output = finish(start(*command, str(finished)))
    assert f'already done: all {TOTAL} steps' in output
    assert 'held-out accuracy' in output
    assert contents() == before
    assert lines(finished) == metrics


def test_what_is_missing_of_a_finished_run_is_written_again(copied: Path, finished: Path):
    weights, report = copied / 'weights.safetensors', copied / 'report.png'
    for path in (weights, report):
        path.write_bytes(path.read_bytes()[:-100])
    train(run_config(), copied)
    assert weights.read_bytes() == (finished / 'weights.safetensors').read_bytes()
    assert is_report(report, TOTAL)
    assert not is_report(report, TOTAL + 1)
    weights.unlink()
    before = report.stat().st_mtime_ns
    train(run_config(), copied)
    assert weights.read_bytes() == (finished / 'weights.safetensors').read_bytes()
    assert report.stat().st_mtime_ns == before


def test_a_directory_that_is_removed_ends_the_run(copied: Path, monkeypatch: pytest.MonkeyPatch):
    drop_after(copied, 60)
    monkeypatch.setattr(Progress, 'update', lambda *_: shutil.rmtree(copied))
    with pytest.raises(WorkdirError, match=r'step 63 cannot be saved.* was removed or replaced.* is that of step 60$'):
        train(run_config(), copied)
    assert not copied.exists()


def drop_after(directory: Path, last: int) -> None:
    """Makes it a run that was stopped after step `last`."""
    for step in Checkpoints(directory / 'checkpoints').steps:
        if step > last:
            shutil.rmtree(directory / 'checkpoints' / f'{step:08d}')
    (directory / 'report.png').unlink()


@pytest.mark.parametrize('parallel', ['mesh', pytest.param('pmap', marks=pytest.mark.slow)])
def test_a_run_of_one_device_is_resumed_on_eight(copied: Path, finished: Path, parallel: str):
    drop_after(copied, 60)
    config = run_config()
    config.parallel = parallel
    assert jax.device_count() == 8
    train(config, copied)
    assert [r['step'] for r in lines(copied)] == [r['step'] for r in lines(finished)]
    assert (copied / 'report.png').exists()
    pairs = zip(jax.tree.leaves(final_state(copied)), jax.tree.leaves(final_state(finished)), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) < 1e-3


def test_a_damaged_newest_checkpoint_is_warned_of_and_redone(copied: Path, finished: Path, command: list[str], start):
    for path in (copied / 'checkpoints' / f'{TOTAL:08d}' / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')
    output = finish(start('-W', 'default::UserWarning', *command, str(copied)))
    assert f'{TOTAL:08d} cannot be read' in output
    assert 'using step 66 before it' in output
    jax.tree.map(np.testing.assert_array_equal, final_state(copied), final_state(finished))
    assert lines(copied) == lines(finished)


def test_the_directory_of_another_config_is_refused(copied: Path):
    before = {str(p): p.read_bytes() for p in copied.rglob('*') if p.is_file()}
    config = run_config()
    config.learning_rate, config.model_fields.groups = 0.02, 8
    with pytest.raises(WorkdirError, match=r'(?s)run of another config.*learning_rate: 0\.01 -> 0\.02.*model_fields'):
        train(config, copied)
    assert {str(p): p.read_bytes() for p in copied.rglob('*') if p.is_file()} == before


def test_a_directory_with_other_files_is_refused(tmp_path: Path, tiny_config):
    (tmp_path / 'thesis.tex').write_text('all of it')
    with pytest.raises(WorkdirError, match='is not empty and holds no run'):
        train(tiny_config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_bad_input_leaves_no_directory(tmp_path: Path, tiny_config):
    tiny_config.model = 'resnext29'
    with pytest.raises(UserError, match='resnext29_'):
        train(tiny_config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_run_that_fails_before_its_first_step_takes_no_directory(tmp_path: Path, tiny_config):
    tiny_config.init_from = str(tmp_path / 'typo.safetensors')
    tiny_config.image_size = 8
    with pytest.raises(UserError, match='typo'):
        train(tiny_config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_two_runs_do_not_share_a_directory(copied: Path):
    with (
        workdir.claimed(copied),
        pytest.raises(WorkdirError, match='another process is at work in'),
    ):
        train(run_config(), copied)


def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path: Path, tiny_config):
    tiny_config.update({'epochs': 2, 'schedule': 'step', 'step_epochs': (1,), 'step_factor': 1e30})
    with pytest.raises(DivergedError, match=r'(loss|grad_norm) is (nan|inf) at step 2[34]; .* is that of step 22, in'):
        train(tiny_config, tmp_path / 'run')
    assert Checkpoints(tmp_path / 'run' / 'checkpoints').steps == [22]
    assert max(r['step'] for r in read_metrics(tmp_path / 'run' / 'metrics.jsonl')) == 22


def test_predictions_come_from_the_checkpoint_in_a_new_process(finished: Path, start, tmp_path: Path):
    from PIL import Image

    output = finish(start('-m', 'train.predict', '--workdir', str(finished), '--count', '5'))
    assert f'checkpoint of step {TOTAL}' in output
    assert output.count('held-out image') == 5
    held_out = open_digits().held_out
    zero = next(held_out[i]['image'] for i in range(len(held_out)) if held_out[i]['label'] == 0)
    Image.fromarray(zero[..., 0]).save(tmp_path / 'zero.png')
    output = finish(start('-m', 'train.predict', '--workdir', str(finished), str(tmp_path / 'zero.png')))
    assert 'zero.png  0 ' in output


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['train', '--config', 'none.py', '--workdir', 'w', '--workdr'], "'--workdr' is not an argument"),
        (['train.predict', '--workdir', 'none'], 'error: none holds no run'),
    ],
)
def test_mistakes_are_one_line(start, arguments: list[str], message: str):
    process = start('-m', *arguments)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert message in output
    assert 'Traceback' not in output


def test_the_saved_config_is_that_of_the_run(finished: Path):
    saved = json.loads((finished / 'config.json').read_text())
    assert saved['model_fields'] == {'layers': [1], 'groups': 4}
    assert workdir.read_config(finished).to_dict() == run_config().to_dict()
