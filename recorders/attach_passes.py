"""Watches a policy that is not ours: every denoise pass of it, from hooks and from methods wrapped on the instance.

Module hooks alone are not enough: the release's sampler calls the bound `vlm.forward`, so that hooks on `vlm` never
fire. Methods are therefore wrapped in the instance's own namespace, and taken out of it again without a trace.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recorders.sites import Sites, resolve
from tracekit.capture import AttentionTap
from tracekit.capture.calls import single
from tracekit.errors import PolicyError
from tracekit.layout import GRID
from tracekit.profiling import Stage

__all__ = ["Feed", "PassSeen", "PassWatch", "Watcher", "locate", "wrapped"]

INDICES_KEYWORD = "patch_correspondence_indices"
VALID_KEYWORD = "correspondence_valid_mask"
MARK = "_tracekit_wrapped"


@dataclass
class PassSeen:
    """One denoise pass so far. Tensors are the policy's own, on its device; do not write to them.

    `sample` (T, A): noisy action. `timestep`: diffusion step, None where the policy has none. `blocks`: site -> outputs
    of its calls, each (rows, D). `text_ids` (n,). `centres` (N_3D, 3). `patch` (N_3D,) int32, 256·view 0 + 16·row +
    column, -1 for none. `fps_starts`: one per sampling stage. `rows` (n, D): what the backbone was fed. `noise` (T, A).
    `dropped`: whether the watcher took rows out; then `whole` holds the rows without that. `times_ns`: stage -> wall
    time on the host.
    """

    index: int
    sample: Tensor
    timestep: int | None
    blocks: dict[str, list[Tensor]] = field(default_factory=dict)
    text_ids: Tensor | None = None
    centres: Tensor | None = None
    patch: npt.NDArray[np.int32] | None = None
    fps_starts: list[int] = field(default_factory=list)
    rows: Tensor | None = None
    whole: Tensor | None = None
    head: Tensor | None = None
    noise: Tensor | None = None
    tap: AttentionTap | None = None
    dropped: bool = False
    times_ns: dict[Stage, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Feed:
    """How the backbone's call goes on. `tap` collects it, at `positions` (n,) int64 of the unpruned sequence.

    With `inject`, the positions are handed to the backbone, because they are not 0 … n - 1.
    """

    positions: Tensor
    tap: AttentionTap | None = None
    inject: bool = False


class Watcher(Protocol):
    """Who wants to know."""

    def fused(self, seen: PassSeen, result: Any) -> Any:
        """What the policy gets as the result of its `fuse` method: `result`, or one with fewer rows."""
        ...

    def feed(self, seen: PassSeen) -> Feed | None:
        """Called before the backbone runs over `seen.rows`."""
        ...

    def passed(self, seen: PassSeen) -> None:
        """The pass is over."""
        ...


class PassWatch:
    """Installs everything on `policy`, tells `watcher`, and removes it again. Use as a context manager."""

    def __init__(self, policy: object, sites: Sites, watcher: Watcher) -> None:
        self._policy, self._sites, self._watcher = policy, sites, watcher
        self._installed = ExitStack()
        self._passes = 0
        self._now: PassSeen | None = None
        self._running = ExitStack()

    def install(self) -> None:
        """Hook the sites and wrap the methods."""
        sites, hook = self._sites, self._hook
        for site in ("image", "point", "proprio", "timestep", "action"):
            path = getattr(sites, site)
            if path is not None:
                hook(path, self._keep(site))
        hook(f"{sites.backbone}.embed_tokens", self._keep_text)
        if sites.centres is not None:
            hook(sites.centres, self._keep_centres)
        for path in sites.fps:
            hook(path, self._keep_start)
        hook(sites.head, self._keep_head)
        for path in _between(sites.forward, sites.backbone):
            module = self._module(path)
            handle = module.register_forward_pre_hook(self._before_language_model, with_kwargs=True)
            self._installed.callback(handle.remove)
        backbone = self._module(sites.backbone)
        before = backbone.register_forward_pre_hook(self._before_backbone, with_kwargs=True)
        after = backbone.register_forward_hook(self._after_backbone)
        self._installed.callback(before.remove)
        self._installed.callback(after.remove)
        self._installed.enter_context(wrapped(self._policy, sites.forward, self._forward))
        if sites.fuse is not None:
            self._installed.enter_context(wrapped(self._policy, sites.fuse, self._fuse))

    def remove(self) -> None:
        """Leave the policy as it was found. Removing twice is fine."""
        self._installed.close()

    def restart(self) -> None:
        """A control step begins: the next pass is pass 0."""
        self._passes, self._now = 0, None

    def _module(self, path: str) -> nn.Module:
        found: nn.Module = resolve(self._policy, path)
        return found

    def _hook(self, path: str, act: Callable[[PassSeen, tuple[Any, ...], Any], None]) -> None:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self._now is not None:
                act(self._now, inputs, output)

        self._installed.callback(self._module(path).register_forward_hook(hook).remove)

    def _keep(self, site: str) -> Callable[[PassSeen, tuple[Any, ...], Any], None]:
        def keep(seen: PassSeen, _inputs: tuple[Any, ...], output: Any) -> None:
            rows = single(output.detach(), f"the output of {getattr(self._sites, site)!r}")
            seen.blocks.setdefault(site, []).append(rows)

        return keep

    @staticmethod
    def _keep_text(seen: PassSeen, inputs: tuple[Any, ...], output: Any) -> None:
        seen.text_ids = inputs[0].detach().flatten()
        seen.blocks.setdefault("text", []).append(single(output.detach(), "the embedded text"))

    def _keep_centres(self, seen: PassSeen, _inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, tuple | list) or len(output) < 2 or output[1].shape[-1] != 3:
            raise PolicyError(
                f"site centres = {self._sites.centres!r} does not return (tokens, centres (1, N, 3)); give another path"
            )
        seen.centres = output[1].detach().reshape(-1, 3)

    def _keep_start(self, seen: PassSeen, _inputs: tuple[Any, ...], output: Any) -> None:
        chosen = output[4] if isinstance(output, tuple | list) and len(output) > 4 else None
        if not isinstance(chosen, Tensor) or chosen.is_floating_point() or chosen.ndim != 2 or len(chosen) != 1:
            raise PolicyError(
                f"a site of fps = {self._sites.fps} does not return the chosen indices (1, M) as its fifth output; "
                "give other paths, or fps=() to record the centres alone"
            )
        seen.fps_starts.append(int(chosen[0, 0]))

    @staticmethod
    def _keep_head(seen: PassSeen, _inputs: tuple[Any, ...], output: Any) -> None:
        seen.head = single(output.detach(), "the predicted noise")

    def _before_language_model(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        seen = self._now
        if seen is None:
            return None
        if kwargs.get(INDICES_KEYWORD) is not None and seen.patch is None:
            seen.patch = patches_of(kwargs[INDICES_KEYWORD], kwargs[VALID_KEYWORD])
        if not seen.dropped:
            return None
        # Contrastive losses address rows by their unpruned place; they feed no action.
        losses = {name: False for name in kwargs if name.startswith("compute_") and name.endswith("_loss")}
        return args, {**kwargs, **losses}

    def _before_backbone(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        seen = self._now
        if seen is None:
            return None
        fed = kwargs.get("inputs_embeds")
        if fed is None:
            raise PolicyError(
                f"site backbone = {self._sites.backbone!r} was called without inputs_embeds; only a policy that "
                "embeds its own rows can be observed"
            )
        seen.rows = single(fed.detach(), "inputs_embeds")
        feed = self._watcher.feed(seen)
        if feed is not None and feed.tap is not None:
            seen.tap = self._running.enter_context(feed.tap)
            self._running.enter_context(feed.tap.rows(feed.positions))
        seen.times_ns["prefill"] = -time.perf_counter_ns()
        if feed is None or not feed.inject:
            return None
        kwargs = {**kwargs, "position_ids": feed.positions[None].to(fed.device)}
        if kwargs.get("attention_mask") is None:
            # Without a mask, newer versions of transformers take gaps in the positions for packed samples.
            kwargs["attention_mask"] = torch.ones(1, len(feed.positions), dtype=torch.long, device=fed.device)
        return args, kwargs

    def _after_backbone(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        seen = self._now
        if seen is not None:
            seen.times_ns["prefill"] += time.perf_counter_ns()
            self._running.close()
            if seen.tap is not None:
                seen.times_ns["observe"] = seen.tap.elapsed_ns
                seen.times_ns["prefill"] -= seen.tap.elapsed_ns

    def _fuse(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._now is None:
            return original(*args, **kwargs)
        start = time.perf_counter_ns()
        result = original(*args, **kwargs)
        self._now.times_ns["encode"] = time.perf_counter_ns() - start
        return self._watcher.fused(self._now, result)

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        sample, timestep = arguments.get("x"), arguments.get("t")
        if not isinstance(sample, Tensor) or sample.ndim != 3 or len(sample) != 1:
            shape = tuple(sample.shape) if isinstance(sample, Tensor) else None
            raise PolicyError(
                f"{self._sites.forward} was called with a noisy action x of shape {shape}; (1, T, A) is needed, "
                "without classifier-free guidance"
            )
        self._now = PassSeen(
            index=self._passes,
            sample=sample.detach()[0].float(),
            timestep=None if timestep is None else int(torch.as_tensor(timestep).flatten()[0]),
        )
        self._passes += 1
        start = time.perf_counter_ns()
        seen = self._now
        try:
            result = original(*args, **kwargs)
        finally:
            self._running.close()
            self._now = None
        seen.times_ns["denoise"] = time.perf_counter_ns() - start - sum(seen.times_ns.values())
        seen.noise = self._noise(seen, result)
        self._watcher.passed(seen)
        return result

    def _noise(self, seen: PassSeen, result: Any) -> Tensor:
        """(T, A) predicted noise: the head's output at the noisy action's rows, checked against what was returned."""
        if seen.head is None or seen.rows is None:
            raise PolicyError(
                f"{self._sites.forward} ran without {self._sites.backbone!r} or {self._sites.head!r}; correct the sites"
            )
        window = len(seen.sample)
        start = 0 if len(seen.head) == window else locate(seen.rows, seen.blocks["action"][0])
        if start is None:
            raise PolicyError(f"the rows of {self._sites.action!r} are not among those fed to {self._sites.backbone!r}")
        noise = seen.head[start : start + window]
        if noise.shape != seen.sample.shape:
            raise PolicyError(
                f"site head = {self._sites.head!r} returns {tuple(seen.head.shape)}, no noise like "
                f"{tuple(seen.sample.shape)} at the rows of the noisy action; give another path"
            )
        last = result[-1] if isinstance(result, tuple) else None
        if isinstance(last, Tensor) and last.shape == (1, *noise.shape) and not torch.equal(last[0], noise):
            raise PolicyError(
                f"{self._sites.forward} does not read its noise from the rows of the noisy action ({start} … "
                f"{start + window - 1} of those fed); the sites do not fit this policy"
            )
        return noise.float()


@contextmanager
def wrapped(root: object, path: str, around: Callable[..., Any]) -> Iterator[None]:
    """Within the block, calls of the method at `path` become `around(original, *args, **kwargs)`.

    Only the instance changes, and afterwards its namespace holds what it held before.
    """
    owner_path, _, name = path.rpartition(".")
    owner = resolve(root, owner_path) if owner_path else root
    original = getattr(owner, name)
    space: dict[str, Any] = vars(owner)
    if getattr(original, MARK, False):
        raise PolicyError(f"{path} is being recorded or pruned already; remove that first")
    before = {name: space[name]} if name in space else {}

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(call, MARK, True)
    space[name] = call
    try:
        yield
    finally:
        space.pop(name)
        space.update(before)


def locate(rows: Tensor, block: Tensor, taken: Tensor | None = None) -> int | None:
    """First place where `block` (n, D) stands among `rows` (L, D), bit for bit; None if it does not.

    `taken`: (L,) bool, rows that belong to something else already.
    """
    count = len(block)
    if not 0 < count <= len(rows):
        return None
    block = block.to(rows.dtype)
    starts = (rows[: len(rows) - count + 1] == block[0]).all(-1).nonzero().flatten().tolist()
    for start in starts:
        free = taken is None or not bool(taken[start : start + count].any())
        if free and torch.equal(rows[start : start + count], block):
            return int(start)
    return None


def patches_of(indices: Tensor, valid: Tensor) -> npt.NDArray[np.int32]:
    """(N,) int32 patches of the front view from the release's (1, N, 2) rows and columns and (1, N) flags."""
    cells = single(indices.detach(), "the correspondence").cpu().numpy()
    seen = valid.detach().reshape(-1).cpu().numpy().astype(bool)
    return np.where(seen, cells[:, 0] * GRID + cells[:, 1], -1).astype(np.int32)


def _between(forward: str, backbone: str) -> list[str]:
    """Paths of the modules that lie on the way from the owner of `forward` to `backbone`, the backbone excluded."""
    owner = forward.rpartition(".")[0]
    rest = backbone.removeprefix(f"{owner}.") if owner else backbone
    parts = rest.split(".")[:-1]
    return [".".join(filter(None, [owner, *parts[: index + 1]])) for index in range(len(parts))]
