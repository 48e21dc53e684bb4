"""Prunes a policy that is not ours while it runs: rows are dropped after fusion, and the rest keep their positions.

The masks come from the pruners that the engine uses, decided at the same places of the control step: with `observe =
current`, pass 0 runs unpruned and is observed, the later passes are pruned; with `lagged`, all are, by what the step
before showed; a pruner that observes nothing prunes all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from recorders.attach_layout import layout_of
from recorders.attach_passes import Feed, PassSeen, PassWatch, wrapped
from recorders.pruned_rows import PrunedRows, PrunedStep
from recorders.sites import find_sites, resolve
from tracekit.capture import GROUPS, AttentionTap, vocabulary_head
from tracekit.config import Configuration
from tracekit.engine import needed_capture, observables_of

__all__ = ["LivePruning", "PrunedStep", "prune_live"]


def prune_live(
    policy: object,
    config: Configuration,
    *,
    views: Sequence[str] = ("front",),
    sites: Mapping[str, Any] | None = None,
) -> LivePruning:
    """Prune every control step of `policy` under `config` from now on, until the answer is removed or its block ends.

    `views` and `sites` as in `recorders.attach`. Raises PolicyError for a policy that cannot be pruned from outside,
    ConfigError for what it cannot do: the policy recomputes everything in every pass and draws its own FPS starts.
    """
    return LivePruning(policy, config, tuple(views), sites)


class LivePruning:
    """Made by `prune_live`. Call `reset` at the start of every episode: pruners remember earlier steps.

    `last`: the last control step. `memory`: the pruner's state after it.
    """

    def __init__(
        self, policy: object, config: Configuration, views: tuple[str, ...], sites: Mapping[str, Any] | None
    ) -> None:
        found = find_sites(policy, sites)
        self._rows = PrunedRows(policy, found, config, views)
        self._backbone, self._views = resolve(policy, found.backbone), views
        self._config = config
        self._head = vocabulary_head(policy) if "logits" in needed_capture(config).norms else None
        self.last: PrunedStep | None = None
        watch = PassWatch(policy, found, self)
        self._installed = ExitStack()
        with ExitStack() as stack:
            stack.callback(watch.remove)
            watch.install()
            stack.enter_context(wrapped(policy, found.predict, self._around(watch)))
            self._installed = stack.pop_all()

    @property
    def memory(self) -> Any:
        """The pruner's state after the last control step."""
        return self._rows.memory

    def reset(self, episode_uid: int) -> None:
        """Start the episode `episode_uid` (uint64, what the pruner's random draws are keyed by)."""
        self._rows.reset(episode_uid)
        self.last = None

    def remove(self) -> None:
        """Leave the policy exactly as it was. Removing twice is fine."""
        self._installed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _around(self, watch: PassWatch) -> Callable[..., Any]:
        def predict(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            watch.restart()
            with self._rows.step() as step:
                action = original(*args, **kwargs)
                self.last = step.finish()
            return action

        return predict

    def fused(self, seen: PassSeen, result: Any) -> Any:
        """The fuse method's result without the rows that this pass drops."""
        return self._rows.fused(seen, result)

    def feed(self, seen: PassSeen) -> Feed | None:
        """Observe pass 0 where the pruner needs it; give rows after a gap their positions of the unpruned sequence."""
        positions = self._rows.place(seen)
        tap = None
        if self._rows.watches(seen):
            layout = layout_of(seen, self._views)
            tap = AttentionTap(self._backbone, layout, GROUPS, needed_capture(self._config), self._head)
        return Feed(positions, tap, inject=seen.dropped) if tap is not None or seen.dropped else None

    def passed(self, seen: PassSeen) -> None:
        """After pass 0, decide what the later passes drop."""
        if seen.tap is not None and self._rows.watches(seen):
            self._rows.show(seen, observables_of(seen.tap, seen.patch, kept=self._rows.kept_now))
