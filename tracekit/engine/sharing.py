"""What configurations have in common in one control step: until a token is dropped, all of them compute the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from tracekit.capture import AttentionTap
from tracekit.engine.forward import Inside, Mask, PassForward
from tracekit.policy import Prefix

__all__ = ["SharedPasses", "SharingForward"]


@dataclass(frozen=True, slots=True)
class _Done:
    """A pass over all tokens: its predicted noise (T, A), and what watched it."""

    noise: Tensor
    tap: AttentionTap | None


class SharedPasses:
    """Passes over all tokens of one control step: one policy, observation and draws, and any number of configurations.

    Configurations take turns step by step, and `forget` stands between two steps: no more than one step's is held.
    """

    def __init__(self) -> None:
        self.done: dict[Hashable, _Done] = {}

    def forget(self) -> None:
        """The next step begins."""
        self.done.clear()


class SharingForward:
    """`forward`, whose passes come from `shared` as long as no token was dropped.

    Bit for bit what would be computed: the key says on what such a pass depends beside the step itself. `starts`: pass
    -> FPS starts that it is encoded from. Taken passes cost nothing, so nothing may be timed here. Caches are not
    shared, as a policy may have one only: who goes on over all tokens where nobody has been fills its own. Not for rows
    that are cut out of a cache (`kv = drop`), which must be there.
    """

    def __init__(self, forward: PassForward, shared: SharedPasses, starts: Callable[[int], tuple[int, ...]]) -> None:
        self._forward, self._done, self._starts = forward, shared.done, starts
        self._whole = True

    def predict(
        self, step: int, prefix: Prefix, kept: Mask | Inside, sample: Tensor, tap: AttentionTap | None
    ) -> Tensor:
        """See `PassForward.predict`."""
        self._whole = self._whole and not isinstance(kept, Inside) and bool(kept.all())
        if not self._whole:
            return self._forward.predict(step, prefix, kept, sample, tap)
        encoded = tuple(self._starts(own) for own in range(step + 1))
        key = (type(self._forward), encoded, torch.get_num_threads())
        watched = (key, None if tap is None else tap.spec)
        done = self._done.get(watched)
        if done is None:
            noise = self._forward.predict(step, prefix, kept, sample, tap)
            done = self._done[watched] = _Done(noise.clone(), tap)
            self._done.setdefault((key, None), done)  # watching changes no bit
            return noise
        if tap is not None and done.tap is not None:
            tap.adopt(done.tap)
        return done.noise.clone()
