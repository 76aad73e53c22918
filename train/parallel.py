"""Mapping a step over the devices of one or several processes, by pmap or by shard_map over a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.config import ConfigError
from train.data.pipeline import Rows


class MeshParallel:
    """`jit(shard_map)`: arrays are global, the state is replicated, a batch is cut along its first axis."""

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        """devices: of all processes; all there are if not given."""
        # By process first, so that a process's rows of a global batch are on its own devices.
        devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
        self.mesh = Mesh(np.array(devices), ('batch',), axis_types=(AxisType.Auto,))

    @property
    def device_count(self) -> int:
        return self.mesh.size

    @property
    def run_ahead(self) -> int:
        """Steps to dispatch before waiting for one; more would only take memory."""
        # On virtual CPU devices several collectives in flight can starve each other of threads and never end.
        return 0 if self.mesh.devices.flat[0].platform == 'cpu' else 2

    def rows(self, batch_size: int) -> Rows:
        """This process's rows of a global batch, whose size is rounded up to divide over the devices."""
        size = -(-batch_size // self.device_count) * self.device_count
        return Rows(size, jax.process_index(), jax.process_count())

    def compile(self, step: Callable, donate_state: bool = False) -> Callable:
        """Maps `step(state, batch) -> replicated results` over the devices."""
        # With check_vma=True gradients of replicated parameters would already be summed, and pmean wrong.
        mapped = jax.shard_map(step, mesh=self.mesh, in_specs=(P(), P('batch')), out_specs=P(), check_vma=False)
        return jax.jit(mapped, donate_argnums=(0,) if donate_state else ())

    def replicate(self, tree: Any) -> Any:
        """Host arrays, the same in every process, onto every device."""
        sharding = NamedSharding(self.mesh, P())
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree)

    def fetch(self, tree: Any) -> Any:
        """Replicated arrays as host copies, which donation cannot touch."""
        return jax.tree.map(lambda a: np.array(a.addressable_shards[0].data), tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a global batch onto its devices."""
        sharding = NamedSharding(self.mesh, P('batch'))
        return {name: jax.make_array_from_process_local_data(sharding, a) for name, a in batch.items()}


class PmapParallel(MeshParallel):
    """`pmap`: every array has a leading axis of devices."""

    def compile(self, step: Callable, donate_state: bool = False) -> Callable:
        donate = (0,) if donate_state else ()
        return jax.pmap(step, axis_name='batch', devices=list(self.mesh.devices), donate_argnums=donate)

    def replicate(self, tree: Any) -> Any:
        copies = self.mesh.local_mesh.size
        sharding = NamedSharding(self.mesh, P('batch'))

        def put(a: Any) -> jax.Array:
            stacked = np.broadcast_to(np.asarray(a), (copies, *np.shape(a)))
            return jax.make_array_from_process_local_data(sharding, stacked)

        return jax.tree.map(put, tree)

    def fetch(self, tree: Any) -> Any:
        return jax.tree.map(lambda a: np.array(np.asarray(a.addressable_shards[0].data)[0]), tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        copies = self.mesh.local_mesh.size
        return super().shard({name: a.reshape(copies, -1, *a.shape[1:]) for name, a in batch.items()})


def make_parallel(name: str, batch_size: int) -> MeshParallel:
    """'pmap' or 'mesh' over all devices, which must divide the batch."""
    parallel = {'pmap': PmapParallel, 'mesh': MeshParallel}[name]()
    if batch_size % parallel.device_count:
        raise ConfigError(
            f'config.batch_size {batch_size} does not divide over {parallel.device_count} devices; '
            f'{parallel.rows(batch_size).batch_size} would'
        )
    return parallel
