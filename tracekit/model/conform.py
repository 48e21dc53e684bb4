"""Recompute what the public MLA release computed on a checkpoint, and say per array how far off we are.

A conformance folder holds a run directory (the checkpoint perhaps as .pt.xz), golden.json (hyper-parameters and
instruction) and golden.npz (inputs, random draws, and the release's own tensors).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tracekit.errors import PolicyError
from tracekit.layout import Span
from tracekit.model.backbone import DecoderLayer, rotate
from tracekit.model.checkpoint import read_json
from tracekit.model.policy import MLA, MLATokens
from tracekit.model.release import ReleaseOptions, load_release
from tracekit.model.text import IdTable
from tracekit.observation import Observation
from tracekit.policy import Precision, Prefix

__all__ = ["ArrayResult", "ConformReport", "conform"]

Arrays = dict[str, npt.NDArray[Any]]

EXACT = frozenset({"attention_row_positions", "denoise_timesteps", "patch_row_col_step0", "patch_valid_step0"})
DERIVED = 1e-4
"""Tolerance for what has gone through the action head and the denoise loop."""
DIRECT = 1e-5
"""Tolerance for tokens, hidden states, attention rows and the vocabulary head."""
PRUNED = frozenset({"pruned_predicted_noise_compressed_positions", "pruned_predicted_noise_original_positions"})
DERIVED_ARRAYS = PRUNED | {"action", "action_unclipped", "noisy_action", "predicted_noise"}
DIRECT_ARRAYS = frozenset(
    {
        "attention_rows_step0",
        "hidden_states_step0",
        "inputs_embeds",
        "last_layer_prenorm_step0",
        "lm_head_l1",
        "point_centres",
    }
)
NEEDED = frozenset({"fps_start_indices", "image", "noisy_action", "point_cloud", "state", "text_ids"})
"""What an action is computed from; of `noisy_action`, the first pass."""

INPUTS = NEEDED - {"noisy_action"} | {"pruned_keep"}
OUTPUTS = EXACT | DERIVED_ARRAYS | DIRECT_ARRAYS


@dataclass(frozen=True, slots=True)
class ArrayResult:
    """One array of the golden file: max|ours - theirs| / max|theirs| (indices and flags: 0 or 1), and the verdict."""

    rel_error: float
    ok: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values; an error that is no number (shapes differ, or ours is not finite) is null."""
        return {"rel_error": self.rel_error if math.isfinite(self.rel_error) else None, "ok": self.ok}


@dataclass(frozen=True, slots=True)
class ConformReport:
    """What `conform` found.

    `arrays`: by name. `prefix_kv`: denoising over a kept prefix against the full recompute, both with FPS pinned to
    pass 0. `pinning`: what pinning itself changes in the unclipped action, which is no error and has no verdict.
    `skipped`: tensors of the checkpoint that feed no action. `unknown`: arrays of the file that are no known input or
    output, and so were not checked; `absent`: known outputs that the file does not hold.
    """

    arrays: Mapping[str, ArrayResult]
    prefix_kv: ArrayResult
    pinning: float
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything with a verdict is within its tolerance."""
        return self.prefix_kv.ok and all(result.ok for result in self.arrays.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "arrays": {name: result.to_json() for name, result in self.arrays.items()},
            "ok": self.ok,
            "prefix_kv": self.prefix_kv.to_json(),
            "pinning": {"rel_error": self.pinning if math.isfinite(self.pinning) else None},
            "skipped": list(self.skipped),
            "unknown": list(self.unknown),
            "absent": list(self.absent),
        }


def conform(directory: Path, options: ReleaseOptions | None = None) -> ConformReport:
    """Load the checkpoint in `directory`, recompute golden.npz in float32, and compare.

    Raises PolicyError where the folder, the checkpoint or the golden file cannot be used.
    """
    golden = _read_golden(directory)
    instruction = _instruction(directory / "golden.json")
    policy, skipped = load_release(directory, options)
    policy.tokenizer = IdTable({instruction: golden["text_ids"].tolist()}, int(golden["text_ids"][-1]))
    policy.freeze(Precision())
    observation = Observation(
        images={policy.config.views[0]: golden["image"]},
        points=golden["point_cloud"].reshape(-1, golden["point_cloud"].shape[-1]),
        state=golden["state"],
        instruction=instruction,
    )
    starts = [tuple(int(value) for value in row) for row in golden["fps_start_indices"]]
    if len(starts) != policy.passes:
        raise PolicyError(
            f"{directory}: golden.npz has {len(starts)} denoise passes, the policy {policy.passes}; set ddim_steps"
        )
    noise = golden["noisy_action"][0].astype(np.float32)
    if noise.size != math.prod(policy.action_shape):
        raise PolicyError(
            f"{directory}: golden.npz has noisy actions of shape {noise.shape}, the policy's are "
            f"{policy.action_shape}; set action_window (future_action_window_size + 1)"
        )
    initial = torch.from_numpy(noise).reshape(policy.action_shape)
    with torch.inference_mode():
        tokens = policy.tokenize(observation)
        prefixes = [policy.embed_prefix(tokens, start) for start in starts]
        ours = _recompute(policy, tokens, prefixes, initial, golden)
        full = _denoise(policy, tokens, prefixes[:1] * policy.passes, initial)["action_unclipped"]
        kept = denoise_over_prefix(policy, prefixes[0], initial).numpy()
    results = {name: _compare(name, ours[name], golden[name]) for name in sorted({*golden} & OUTPUTS)}
    error = relative_error(kept, full)
    return ConformReport(
        arrays=results,
        prefix_kv=ArrayResult(error, error <= DERIVED),
        pinning=relative_error(full, ours["action_unclipped"]),
        skipped=skipped,
        unknown=tuple(sorted({*golden} - INPUTS - OUTPUTS)),
        absent=tuple(sorted(OUTPUTS - {*golden})),
    )


def relative_error(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """max|ours - theirs| / max|theirs| in float64 (max|ours - theirs| where theirs is all zero); inf for NaN."""
    a, b = np.asarray(ours, np.float64).reshape(-1), np.asarray(theirs, np.float64).reshape(-1)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    scale = float(np.abs(b).max(initial=0.0)) or 1.0
    return float(np.abs(a - b).max(initial=0.0)) / scale


def denoise_over_prefix(policy: MLA, prefix: Prefix, sample: Tensor) -> Tensor:
    """The unclipped action (T, A) from noise `sample` (T, A): one prefill of `prefix`, then tails over its cache."""
    length = len(prefix.rows)
    window = policy.config.action_window
    cache = policy.new_cache(length + window + 2)
    policy.forward(prefix.rows, torch.arange(length), cache)
    positions = torch.arange(length, length + window + 2)
    for step in range(policy.passes):
        hidden = policy.forward(policy.embed_tail(sample, step), positions, cache)
        cache.forget(window + 2)
        sample = policy.advance(sample, policy.read_noise(hidden[1 : 1 + window]), step)
    return sample


def _instruction(path: Path) -> str:
    """What golden.json says was asked of the robot, once it is known that its numbers can be held against ours."""
    settings = read_json(path)
    precision = settings.get("precision", "fp32")
    if precision not in {"fp32", "float32"}:
        raise PolicyError(f"{path}: precision {precision!r}; only numbers computed in fp32 can be compared, give those")
    instruction = settings.get("instruction")
    if not isinstance(instruction, str):
        raise PolicyError(f"{path}: lacks the instruction; restore the file")
    return instruction


def _read_golden(directory: Path) -> Arrays:
    path = directory / "golden.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise PolicyError(f"{path}: cannot be read ({error}); give a folder laid out as a conformance set") from error
    needed = NEEDED | ({"pruned_keep"} if {*golden} & PRUNED else frozenset())
    missing = sorted(name for name in needed if name not in golden or not golden[name].size)
    if missing:
        raise PolicyError(f"{path}: lacks the inputs {', '.join(missing)}; restore the file")
    strange = sorted(name for name in {*golden} & (INPUTS | OUTPUTS) if golden[name].dtype.kind not in "biuf")
    if strange:
        raise PolicyError(f"{path}: {', '.join(strange)} hold no numbers; restore the file")
    return golden


def _compare(name: str, ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> ArrayResult:
    if name in EXACT:
        equal = np.array_equal(ours.reshape(theirs.shape) if ours.size == theirs.size else ours, theirs)
        return ArrayResult(0.0 if equal else 1.0, bool(equal))
    error = relative_error(ours, theirs)
    return ArrayResult(error, error <= (DERIVED if name in DERIVED_ARRAYS else DIRECT))


def _denoise(policy: MLA, tokens: MLATokens, prefixes: Sequence[Prefix], sample: Tensor) -> Arrays:
    """The release's loop: the whole sequence anew in every pass, over the prefix of that pass."""
    kept: dict[str, list[Tensor]] = {}
    action = tokens.layout.span("action").slice
    for step, prefix in enumerate(prefixes):
        rows = torch.cat([prefix.rows, policy.embed_tail(sample, step)])
        hidden = policy.forward(rows, torch.arange(len(rows)))
        noise = policy.read_noise(hidden[action])
        found = {
            "inputs_embeds": rows,
            "point_centres": prefix.centres,
            "noisy_action": sample,
            "predicted_noise": noise,
            "lm_head_l1": policy.llm_backbone.llm.lm_head(hidden).abs().sum(-1),
        }
        for name, value in found.items():
            kept.setdefault(name, []).append(value)
        sample = policy.advance(sample, noise, step)
    return {name: torch.stack(values).numpy() for name, values in kept.items()} | {"action_unclipped": sample.numpy()}


def _recompute(policy: MLA, tokens: MLATokens, prefixes: Sequence[Prefix], initial: Tensor, golden: Arrays) -> Arrays:
    """Every array that a golden file may hold."""
    layout = tokens.layout
    ours = _denoise(policy, tokens, prefixes, initial)
    ours["action"] = policy.read_out(torch.from_numpy(ours["action_unclipped"])).numpy()
    ours["denoise_timesteps"] = np.array(policy.timesteps, np.float64)

    expected = np.arange(layout.span("text").start, layout.length)
    ours["attention_row_positions"] = expected
    given = golden.get("attention_row_positions", expected).reshape(-1)
    queries = torch.from_numpy(given if np.isin(given, np.arange(layout.length)).all() else expected)
    prefix = prefixes[0]
    rows = torch.cat([prefix.rows, policy.embed_tail(initial, 0)])
    with _observed(policy, queries) as seen:
        final = policy.forward(rows, torch.arange(len(rows)))
    ours["hidden_states_step0"] = torch.stack([*seen.inputs, final]).numpy()
    ours["last_layer_prenorm_step0"] = seen.prenorm[0].numpy()
    ours["attention_rows_step0"] = torch.stack(seen.attention).numpy()

    camera = tokens.cameras[0]
    if camera is None or prefix.centres is None:
        raise PolicyError(
            f"policy {policy.config.name!r}: view {policy.config.views[0]!r} has no camera; name one in cameras"
        )
    ours["patch_row_col_step0"], ours["patch_valid_step0"] = camera.raster(prefix.centres.numpy())

    return ours | _pruned(policy, layout.span("action"), rows, golden)


def _pruned(policy: MLA, action: Span, rows: Tensor, golden: Arrays) -> Arrays:
    """Predicted noise of pass 0 without the rows that the file drops, at their own positions and renumbered."""
    if "pruned_keep" not in golden:
        return {}
    keep = golden["pruned_keep"].astype(bool).reshape(-1)
    if len(keep) != len(rows) or not keep[action.slice].all():
        raise PolicyError(
            f"pruned_keep marks {len(keep)} rows of a sequence of {len(rows)} and must keep the noisy action; restore "
            "golden.npz"
        )
    kept = torch.from_numpy(keep).nonzero().flatten()
    first = int(keep[: action.start].sum())
    found = {}
    for name, positions in (("original", kept), ("compressed", torch.arange(len(kept)))):
        hidden = policy.forward(rows[kept], positions)
        noise = policy.read_noise(hidden[first : first + len(action)])
        found[f"pruned_predicted_noise_{name}_positions"] = noise.numpy()
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    inputs: list[Tensor]
    attention: list[Tensor]
    prenorm: list[Tensor]


@contextmanager
def _observed(policy: MLA, queries: Tensor) -> Iterator[_Seen]:
    """Within the block, collect every layer's input, the final norm's input, and the attention rows of `queries`.

    The rows are computed beside the fused kernel, from the projections that the layer itself made.
    """
    seen = _Seen([], [], [])
    projected: dict[str, Tensor] = {}

    def keep_projection(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            projected[name] = output.view(len(output), -1, policy.backbone.head_dim).transpose(0, 1)

        return keep

    def keep_rows(_module: nn.Module, _inputs: Any, kwargs: dict[str, Any], _output: Any) -> None:
        cos, sin = kwargs["position_embeddings"]
        query = rotate(projected["q"], cos, sin)[:, queries]
        key = rotate(projected["k"], cos, sin)
        key = key.repeat_interleave(len(query) // len(key), 0)
        logits = query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5
        future = torch.arange(key.shape[1]) > queries[:, None]
        seen.attention.append(logits.masked_fill(future, float("-inf")).softmax(-1))

    hooks = [policy.backbone.norm.register_forward_pre_hook(lambda _m, inputs: seen.prenorm.append(inputs[0]))]
    for layer in policy.backbone.layers:
        attention = cast("DecoderLayer", layer).self_attn
        hooks.append(layer.register_forward_pre_hook(lambda _m, inputs: seen.inputs.append(inputs[0])))
        hooks.append(attention.q_proj.register_forward_hook(keep_projection("q")))
        hooks.append(attention.k_proj.register_forward_hook(keep_projection("k")))
        hooks.append(attention.register_forward_hook(keep_rows, with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
