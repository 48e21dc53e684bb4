"""What a policy must offer to be recorded, pruned and replayed by the engine, and the registry that finds one by name.

The engine owns the control step (passes, dropped rows, caches, random draws); a policy owns its numbers. All tensors
are unbatched: one control step is one sequence of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tracekit.actions import ActionSpec
from tracekit.camera import Camera
from tracekit.errors import PolicyError
from tracekit.layout import PatchAlignment, TokenLayout
from tracekit.observation import Observation

__all__ = [
    "Cache",
    "Policy",
    "PolicyIdentity",
    "Precision",
    "Prefix",
    "Together",
    "Tokens",
    "load_policy",
    "register_policy",
]


@dataclass(frozen=True, slots=True)
class PolicyIdentity:
    """What results depend on: class and hyper-parameters (`config_digest`), weights (`weights_digest`), precision."""

    name: str
    config_digest: str
    weights_digest: str
    parameters: int
    trained: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values for attributes."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Precision:
    """Arithmetic of the forward pass: `float32`, or `bfloat16` (bf16 projections over an fp32 residual stream)."""

    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Tokens:
    """An observation made ready for the encoders.

    `layout`: the full, unpruned sequence. `text_ids`: (n,) int64 as fed to the model. `fps_sizes`: number of candidate
    points of each farthest-point-sampling stage (empty for a policy without points): a start index of stage i is drawn
    from 0 ... fps_sizes[i] - 1. `inputs`: the policy's own tensors, opaque to the engine.
    """

    layout: TokenLayout
    text_ids: Tensor
    fps_sizes: tuple[int, ...]
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Embedded prefix of one denoise pass.

    `rows`: (layout.prefix_length, D) float. `centres`: (N_3D, 3) float32 world metres of the point tokens, or None.
    `alignment`: point token -> patch, or None for a policy without points. `cameras`: index of a view -> its camera, of
    the views that have one; a correspondence of points and patches other than projection may need them.
    """

    rows: Tensor
    centres: Tensor | None
    alignment: PatchAlignment | None
    cameras: Mapping[int, Camera] = field(default_factory=dict)


class Cache(Protocol):
    """Keys (rotated) and values of every layer for the rows seen so far; made by `Policy.new_cache`."""

    def forget(self, count: int) -> None:
        """Forget the last `count` rows of every layer (a denoise pass leaves the prefix as it was)."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep only `rows` ((n,) int64 indices of held rows, ascending)."""
        ...


@runtime_checkable
class Policy(Protocol):
    """A policy the engine can run. A = action size, T = actions per chunk, D = width.

    What a call returns is its caller's: no later call writes to it, and nothing that the backbone's projections gave is
    written to in place, because it may be read only after the step, by another thread. The one exception is the cache;
    see `new_cache`. `tracekit.testing.check_policy` checks it.
    """

    @property
    def identity(self) -> PolicyIdentity:
        """Name and digests that results are filed under."""
        ...

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning of the actions and of the state."""
        ...

    @property
    def passes(self) -> int:
        """Denoise passes per action (1 for a policy that reads its action out directly)."""
        ...

    @property
    def action_shape(self) -> tuple[int, int]:
        """(T, A)."""
        ...

    @property
    def backbone(self) -> nn.Module:
        """The LLaMA-shaped decoder that `tracekit.capture` hooks: q_proj, k_proj of each `self_attn`, final `norm`."""
        ...

    def tokenize(self, observation: Observation) -> Tokens:
        """Make an observation ready; raises PolicyError (one line) on a wrong shape or a missing modality."""
        ...

    def embed_prefix(self, tokens: Tokens, fps_starts: tuple[int, ...]) -> Prefix:
        """Run the encoders with the given FPS start indices and lay the prefix rows out."""
        ...

    def embed_tail(self, sample: Tensor, step: int) -> Tensor:
        """Rows of the tail, (length - prefix_length, D), for noisy action `sample` (T, A) in pass `step` (0-based)."""
        ...

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache with room for `capacity` rows.

        May be the one before, emptied, or another on the same buffers: whoever observes the policy has by now read what
        it wanted of earlier ones. Between this call and the next, only `forward`, `forget` and `select` change it.
        """
        ...

    def forward(
        self,
        rows: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        *,
        visible: Tensor | None = None,
        blocks: slice | None = None,
    ) -> Tensor:
        """Final hidden states (n, D) of `rows` (n, D) at RoPE `positions` (n,) int64, causal in row order.

        With a cache, `rows` come after the rows it holds and are added to it.

        A policy may leave out the keywords, each of which one option needs. `visible`, for `execution.drop = "mask"`:
        (n, keys) bool, True where a row may look, instead of plain causality. `blocks`, for pruners that decide inside
        the network: run only these decoder layers; `rows` are the states before the first of them, and the final norm
        follows only the last layer.
        """
        ...

    def read_noise(self, hidden: Tensor) -> Tensor:
        """Predicted noise (T, A) from the final hidden states (T, D) of the action rows."""
        ...

    def advance(self, sample: Tensor, noise: Tensor, step: int) -> Tensor:
        """The next sample (T, A) after pass `step`; after the last pass, the unclipped action."""
        ...

    def read_out(self, sample: Tensor) -> Tensor:
        """The action to execute, (T, A) float64 in units of `action_spec`: clipped, gripper decided, un-normalised."""
        ...


@runtime_checkable
class Together(Protocol):
    """What a policy offers beyond `Policy` for `execution.mode = "throughput"`."""

    def forward_together(
        self, rows: Sequence[Tensor], positions: Sequence[Tensor], caches: Sequence[Cache | None]
    ) -> list[Tensor]:
        """`Policy.forward` for several control steps at once, equal to one at a time up to rounding.

        One entry each per step: rows (n, D), positions (n,) int64, a cache of its own or none.
        """
        ...


PolicyLoader = Callable[[Precision], Policy]
_REGISTRY: dict[str, PolicyLoader] = {}


def register_policy(name: str, loader: PolicyLoader) -> None:
    """Make `loader` available as `--policy name`. Entry points of group `tracekit.policies` are found without it."""
    _REGISTRY[name] = loader


def load_policy(spec: str, precision: Precision | None = None) -> Policy:
    """The policy called `spec` (registered, or an entry point) or stored in the directory `spec`.

    Raises PolicyError naming the known policies if there is none.
    """
    from tracekit.model import load_directory  # noqa: PLC0415  # it registers the built-in names and imports this module

    precision = precision or Precision()
    if spec in _REGISTRY:
        return _REGISTRY[spec](precision)
    found = {point.name: point for point in entry_points(group="tracekit.policies")}
    if spec in found:
        loader: PolicyLoader = found[spec].load()
        return loader(precision)
    if Path(spec).is_dir():
        return load_directory(Path(spec), precision)
    known = ", ".join(sorted({*_REGISTRY, *found}))
    raise PolicyError(f"no policy {spec!r}: neither a directory nor one of: {known}; give --policy NAME or DIR")
