"""Which mask bits two replays of one episode disagree on, and why: tie, upstream, logic, real, or a consequence.

Declared level 3 of a replay. All bounds are computed from run A alone:

- logic: every input of the episode so far is bitwise equal, and the decision differs, even where it was a tie:
  decisions are the same bits on every machine;
- tie: |margin| ≤ 8 ulp of the stored scores (float32) at the value tested;
- upstream: every input differs by at most the declared relative tolerance (float32 1e-5, bfloat16 5e-2), and
  |margin| ≤ Σ|∂margin/∂x|·tolerance·|x|;
- real: all else;
- consequence, counted apart: a flip after an earlier one in the episode, through what the pruner remembers.

A flip whose patch fails several tests differently is as bad as the worst of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from reports.sensitivity import Sensitivity
from tracekit.config import Configuration
from tracekit.store import Episode

__all__ = ["FLIP_CLASSES", "TOLERANCE", "Flip", "FlipClass", "episode_flips"]

FlipClass = Literal["tie", "upstream", "logic", "real", "consequence"]
FLIP_CLASSES: tuple[FlipClass, ...] = get_args(FlipClass)

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Relative difference of inputs that another environment may cause, by the dtype of the forward pass."""

TIE_ULP = 8
SCORES = ("norm_2d", "norm_3d", "attention_2d", "attention_3d", "ortho_3d", "points")
TESTED = {
    "tau_2d": "m_3d_s1",
    "tau_3d": "m_3d_s1",
    "mu_2d": "m_2d_s2",
    "mu_3d": "m_3d_s2",
    "object_2d": "m_2d_s2",
    "object_3d": "m_3d_s2",
}
"""Margin -> the smoothed indicator that was compared with a threshold."""

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Flip:
    """One patch of one step whose masks differ.

    `step`, `patch` count from 0; a `patch` of -1 stands for all of a step's point tokens, where the rule picks tokens.
    `margin`: name of the test that explains the class, and `value`, `bound` run A's margin and what it was held
    against (None where there is none).
    """

    episode: str
    step: int
    patch: int
    kind: FlipClass
    margin: str | None = None
    value: float | None = None
    bound: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "episode": self.episode,
            "step": self.step,
            "patch": self.patch,
            "class": self.kind,
            "margin": self.margin,
            "value": self.value,
            "bound": self.bound,
        }


def episode_flips(name: str, config: Configuration, a: Episode, b: Episode, relative: float) -> list[Flip]:
    """The flips of one episode in two saved replays under `config` (that of run A), in order of step and patch."""
    return list(_Episode(name, config, a, b, relative).flips())


class _Episode:
    def __init__(self, name: str, config: Configuration, a: Episode, b: Episode, relative: float) -> None:
        self._name, self._config, self._relative = name, config, relative
        self._a, self._b = _load(a), _load(b)
        self._lagged = config.method.observes == "forward" and config.observe.mode == "lagged"
        self._exact = self._within = True
        self._sensitivity: Sensitivity | None = None
        if config.kind == "tri_stage" and "seen/points" in self._a:
            has_points = "decision/mask_3d" in self._a or "decision/mask_3d_tokens" in self._a
            patches = self._a["decision/mask_2d"].shape[1]
            self._sensitivity = Sensitivity(config.pruner, patches, relative, has_points=has_points)

    def flips(self) -> Iterator[Flip]:
        earlier = False
        for step in range(len(self._a["decision/mask_2d"])):
            self._take_inputs(step)
            patches, tokens = self._flipped(step)
            consequence = earlier and self._remembers(step)
            found = [self._classify(step, patch, consequence) for patch in patches.tolist()]
            if tokens and not found:
                found = [Flip(self._name, step, -1, "consequence" if consequence else self._unbounded())]
            yield from found
            earlier = earlier or bool(found)

    def _take_inputs(self, step: int) -> None:
        """What the decision of `step` was made from: what this step showed, or, lagging, the step before."""
        at = step - 1 if self._lagged else step
        if at < 0:
            return
        ours, theirs = _row(self._a, at), _row(self._b, at)
        same = self._same_inputs(at)
        self._exact = self._exact and same
        self._within = self._within and (same or self._close(ours, theirs))
        if self._sensitivity is not None and "seen/points" in ours:
            seen = {name: ours[f"seen/{name}"] for name in SCORES}
            self._sensitivity.see(seen, ours["seen/observed"])

    def _same_inputs(self, at: int) -> bool:
        """Whether what step `at` showed is equal bit by bit."""
        ours, theirs = _row(self._a, at), _row(self._b, at)
        if not ours and self._config.method.reads != "nothing":
            return False  # what was not saved cannot be shown to be equal
        return ours.keys() == theirs.keys() and all(_equal(ours[name], theirs[name]) for name in ours)

    def _close(self, ours: Arrays, theirs: Arrays) -> bool:
        if any(f"seen/{name}" not in side for name in (*SCORES, "observed") for side in (ours, theirs)):
            return False
        if any(not _equal(ours[name], theirs[name]) for name in ("seen/points", "seen/observed")):
            return False
        for name in SCORES[:-1]:
            x, y = ours[f"seen/{name}"].astype(np.float64), theirs[f"seen/{name}"].astype(np.float64)
            scale = np.maximum(x, ours["seen/attention_3d"]) if name == "ortho_3d" else x
            if not (np.abs(x - y) <= self._relative * scale).all():  # NaN is close to nothing
                return False
        return True

    def _flipped(self, step: int) -> tuple[npt.NDArray[np.intp], bool]:
        """Patches whose masks differ, and whether masks over point tokens do."""
        differ = self._a["decision/mask_2d"][step] != self._b["decision/mask_2d"][step]
        ours, theirs = (side.get("decision/mask_3d") for side in (self._a, self._b))
        if ours is not None and theirs is not None:
            differ = differ | (ours[step] != theirs[step])
        ours, theirs = (side.get("decision/mask_3d_tokens") for side in (self._a, self._b))
        tokens = ours is not None and theirs is not None and not _equal(ours[step], theirs[step])
        if tokens and ours is not None and theirs is not None and self._index_pairs(ours[step]):
            differ = differ | (ours[step] != theirs[step])
        return np.flatnonzero(differ), bool(tokens)

    def _index_pairs(self, tokens: npt.NDArray[np.bool_]) -> bool:
        """Whether the p-th point token belongs to the p-th patch."""
        reduction = getattr(self._config.pruner, "reduction", None)
        return reduction is not None and reduction.correspondence == "index" and tokens.size == self._patches

    @property
    def _patches(self) -> int:
        return int(self._a["decision/mask_2d"].shape[1])

    def _remembers(self, step: int) -> bool:
        """Whether the memory before `step` differs in the two runs; a lagging one holds what the step before showed."""
        if self._config.reuse.kind in {"mask", "skip_frame"}:
            return True
        if self._lagged and not self._same_inputs(step - 1):
            return True
        names = [name for name in self._a if name.startswith("indicator/")]
        return any(not _equal(self._a[name][step - 1], self._b[name][step - 1]) for name in names if name in self._b)

    def _classify(self, step: int, patch: int, consequence: bool) -> Flip:
        if consequence:
            return Flip(self._name, step, patch, "consequence")
        verdicts = [self._verdict(step, patch, margin) for margin in self._failed(step, patch)]
        if not verdicts:
            return Flip(self._name, step, patch, self._unbounded())
        return max(verdicts, key=lambda flip: FLIP_CLASSES.index(flip.kind))  # of equally bad ones the first test

    def _unbounded(self) -> FlipClass:
        """The class of a flip that no margin explains."""
        return "logic" if self._exact else "real"

    def _failed(self, step: int, patch: int) -> list[str]:
        """Names of the tests that came out differently for `patch`, in the order in which they are made."""
        if "margin/tau_2d" not in self._a or "margin/tau_2d" not in self._b:
            return []
        a, b = ({name: side[name][step, patch] for name in side if side[name].ndim > 1} for side in self._sides)
        failed = [name for name in ("tau_2d", "tau_3d") if _side(a, name) != _side(b, name)]
        if a.get("decision/cluster") != b.get("decision/cluster"):
            return [*failed, "cluster"]
        tests = {0: ("draw",), 1: ("mu_3d", "mu_2d"), 2: ("object_2d", "object_3d")}
        return failed + [name for name in tests[int(a.get("decision/cluster", 0))] if _side(a, name) != _side(b, name)]

    @property
    def _sides(self) -> tuple[Arrays, Arrays]:
        def own(side: Arrays) -> Arrays:
            kept = ("margin/", "decision/cluster", "decision/s2")
            return {name: values for name, values in side.items() if name.startswith(kept)}

        return own(self._a), own(self._b)

    def _verdict(self, step: int, patch: int, margin: str) -> Flip:
        value = float(self._a[f"margin/{margin}"][step, patch])
        tie = TIE_ULP * float(np.spacing(np.float32(abs(self._tested(step, patch, margin)))))
        if self._exact:
            return Flip(self._name, step, patch, "logic", margin, value, tie)
        if abs(value) <= tie:
            return Flip(self._name, step, patch, "tie", margin, value, tie)
        if margin in self._of_sets:
            moved = self._moved(step)
            if moved:
                return replace(max(moved, key=lambda flip: FLIP_CLASSES.index(flip.kind)), patch=patch)
        bound = self._bound(step, patch, margin)
        kind: FlipClass = "upstream" if self._within and abs(value) <= bound else "real"
        return Flip(self._name, step, patch, kind, margin, value, bound)

    @property
    def _of_sets(self) -> set[str]:
        """Tests whose thresholds jump when a patch changes its set."""
        pruner, found = self._config.pruner, set()
        if getattr(pruner, "draw", "") == "stratified" or getattr(pruner, "budget", "") == "soft":
            found |= {"draw"}
        if getattr(pruner, "baseline", "") == "per_set":
            found |= {"mu_2d", "mu_3d"}
        if getattr(pruner, "object_rule", "") == "quantiles":
            found |= {"object_2d", "object_3d"}
        return found

    def _moved(self, step: int) -> list[Flip]:
        """Why patches of `step` are in another set in run B."""
        differ = self._a["decision/cluster"][step] != self._b["decision/cluster"][step]
        return [self._verdict(step, patch, "cluster") for patch in np.flatnonzero(differ).tolist()]

    def _bound(self, step: int, patch: int, margin: str) -> float:
        if self._sensitivity is None:
            return 0.0
        cluster = self._a.get("decision/cluster")
        return float(self._sensitivity.of(margin, None if cluster is None else cluster[step])[patch])

    def _tested(self, step: int, patch: int, margin: str) -> float:
        """The value of run A that was compared with a threshold."""
        if margin in TESTED:
            return float(self._a[f"indicator/{TESTED[margin]}"][step, patch])
        if margin == "cluster":
            return float(self._a["indicator/cluster_score"][step, patch])
        return 1.0  # draws lie in [0, 1)


def _load(episode: Episode) -> Arrays:
    wanted = ("decision/mask", "decision/cluster", "decision/s2", "margin/", "indicator/", "seen/", "digest/seen")
    return {name: episode.read(name) for name in episode.keys() if name.startswith(wanted)}  # noqa: SIM118  # no dict


def _row(arrays: Arrays, step: int) -> Arrays:
    return {name: values[step] for name, values in arrays.items() if name.startswith(("seen/", "digest/seen"))}


def _equal(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _side(values: dict[str, Any], margin: str) -> int:
    """On which side of its threshold a value was: -1, 0, 1; 2 where the test was not made."""
    value = values[f"margin/{margin}"]
    return 2 if np.isnan(value) else int(np.sign(value))
