"""States of the process's random generators as bytes, so that a step whose policy draws from them can be repeated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from tracekit.errors import TraceError

__all__ = ["generator_states", "restore_generators"]

States = Mapping[str, npt.NDArray[np.uint8]]
_WORDS = 624 * 4
"""Bytes of the key of NumPy's Mersenne Twister; position, flag and held normal follow as three 8-byte numbers."""


def generator_states() -> dict[str, npt.NDArray[np.uint8]]:
    """Name -> (bytes,) uint8 of the generators `torch`, `numpy` (the global one) and, where in use, `cuda<i>`."""
    states = {"torch": torch.get_rng_state().numpy().copy()}
    _, key, position, has_normal, normal = np.random.get_state(legacy=True)  # noqa: NPY002  # the release's own generator
    numbers = np.array([position, has_normal], np.int64).view(np.uint8)
    held = np.array([normal], np.float64).view(np.uint8)
    states["numpy"] = np.concatenate([np.asarray(key, np.uint32).view(np.uint8), numbers, held])
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"cuda{index}"] = state.numpy().copy()
    return states


def restore_generators(states: States) -> None:
    """Put the generators back to `states`, as `generator_states` gave them or a trace holds them (`generators/<name>`).

    Raises TraceError for a generator that is not known or a device that is not there.
    """
    devices = {f"cuda{index}": index for index in range(torch.cuda.device_count())}
    for name, state in states.items():
        data = np.ascontiguousarray(state, np.uint8)
        if name == "torch":
            torch.set_rng_state(torch.from_numpy(data.copy()))
        elif name == "numpy" and data.size == _WORDS + 24:
            position, has_normal = data[_WORDS : _WORDS + 16].view(np.int64)
            normal = float(data[_WORDS + 16 :].view(np.float64)[0])
            key = data[:_WORDS].view(np.uint32)
            np.random.set_state(("MT19937", key, int(position), int(has_normal), normal))  # noqa: NPY002  # see above
        elif name in devices:
            torch.cuda.set_rng_state(torch.from_numpy(data.copy()), devices[name])
        else:
            raise TraceError(
                f"random generator {name!r} cannot be restored here (known: torch, numpy, {', '.join(devices) or 'no'} "
                "cuda devices); repeat the step on the machine that recorded it"
            )
