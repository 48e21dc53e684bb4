"""A run directory of the public MLA release -> a policy: config.json, dataset_statistics.json, checkpoints/step-*.pt.

Widths are read off the tensors. What tensors do not fix is looked up, in this order: options given by the caller, a
sidecar `tracekit.json` in the run directory, `golden.json` there, the run's own `config.json`, and LLaMA-2 7B's values
for a checkpoint of its width; what is found nowhere is asked for by name.
"""

from __future__ import annotations

import lzma
import pickle
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tracekit.actions import ROTATION_SIZES, ActionSpec
from tracekit.errors import PolicyError
from tracekit.model.checkpoint import blank_policy, load_weights, read_json
from tracekit.model.config import MLAConfig, Normalisation
from tracekit.model.policy import MLA
from tracekit.model.text import load_tokenizer

__all__ = ["ReleaseOptions", "find_checkpoint", "is_run_directory", "load_release"]

SIDECAR = "tracekit.json"
STATISTICS = "dataset_statistics.json"
LLAMA_7B_WIDTH = 4096
SUFFIXES = (".pt", ".pt.xz", ".safetensors")
INTEGERS = frozenset({"heads", "action_window", "ddim_steps", "image_heads", "point_neighbours"})
LLAMA_7B = {"heads": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "action_window": 1, "ddim_steps": 8}

NOT_FOR_INFERENCE = re.compile(
    r"generation_manager\.|tactile_embedder\.|llm_backbone\.llm\.\w*contrastive_loss_module\."
    r"|llm_backbone\.llm\.model\.layers\.\d+\.self_attn\.rotary_emb\."
    r"|vision_tower_2d\.(class_embedding$|split_embedding$|global_attention\.)"
    r"|vision_tower_3d\.(cls_token$|pos_embed$|norm\.|post_fpsknn\.)"
)
"""Tensors of the release that feed no action: training losses, future generation, and what its encoders discard."""


@dataclass(frozen=True, slots=True)
class ReleaseOptions:
    """What the tensors of a run do not fix; None: look further. Also the keys of the sidecar `tracekit.json`.

    `statistics`: key in dataset_statistics.json (needed where it has several). `views`, `cameras`: as in `MLAConfig`;
    the release's own are one front view seen by `rlbench_front`. `image_heads` (8) and `point_neighbours` (81) are
    constants of the release.
    """

    heads: int | None = None
    rms_norm_eps: float | None = None
    rope_theta: float | None = None
    action_window: int | None = None
    ddim_steps: int | None = None
    statistics: str | None = None
    image_heads: int | None = None
    point_neighbours: int | None = None
    views: tuple[str, ...] | None = None
    cameras: Mapping[str, str] | None = None


def is_run_directory(directory: Path) -> bool:
    """Whether `directory` looks like a run directory of the release."""
    return (directory / STATISTICS).is_file() or (directory / "checkpoints").is_dir()


def find_checkpoint(directory: Path) -> Path:
    """The checkpoint of the highest step in `directory`/checkpoints or, failing that, in `directory` itself.

    Plain `.pt` is preferred over `.pt.xz` and `.safetensors` of the same step. Raises PolicyError if there is none.
    """
    for folder in (directory / "checkpoints", directory):
        found = [path for suffix in SUFFIXES for path in sorted(folder.glob(f"step-*{suffix}"))]
        if found:
            return max(found, key=lambda path: (_step(path), path.suffix == ".pt", path.name))
    raise PolicyError(
        f"{directory}: no checkpoints/step-*.pt (or .pt.xz, .safetensors); give the run directory of an MLA checkpoint"
    )


def _step(path: Path) -> int:
    match = re.match(r"step-(\d+)", path.name)
    return int(match.group(1)) if match else -1


def load_release(directory: Path, options: ReleaseOptions | None = None) -> tuple[MLA, tuple[str, ...]]:
    """The policy of the run in `directory`, float32 and not frozen, and the names of the tensors it has no use for.

    Nothing but tensors is unpickled, and the file is memory-mapped: it must stay as it is while the policy lives.
    Raises PolicyError (one line) for a damaged file, for tensors that are missing, unexpected or misshaped (all of them
    named), and for hyper-parameters that neither the tensors nor the sidecar give.
    """
    path = find_checkpoint(directory)
    tensors = read_tensors(path)
    skipped = tuple(sorted(name for name in tensors if NOT_FOR_INFERENCE.match(name)))
    for name in skipped:
        del tensors[name]
    config = _config(directory, path, tensors, options or ReleaseOptions())
    policy = blank_policy(config, load_tokenizer(directory), trained=True)
    load_weights(policy, tensors, str(path))
    return policy, skipped


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a release checkpoint, `<module>.<key>` -> tensor, mapped from the file; see `load_release`.

    A `.safetensors` file holds them under these names.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        if path.suffix != ".xz":
            loaded = _unpickle(path)
        else:
            with tempfile.TemporaryDirectory() as folder:  # on POSIX the mapping outlives the file's name
                plain = Path(folder) / path.stem
                with lzma.open(path) as packed, plain.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                loaded = _unpickle(plain)
    except pickle.UnpicklingError as error:
        raise PolicyError(
            f"{path}: not an archive of tensors alone, so it is not loaded; save {{'model': state dicts}} with torch"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, lzma.LZMAError, SafetensorError) as error:
        reason = re.split(r"\n|\. ", str(error), maxsplit=1)[0]
        raise PolicyError(f"{path}: damaged or cut off ({reason}); copy the checkpoint again") from error
    modules = loaded.get("model") if isinstance(loaded, Mapping) else None
    if not isinstance(modules, Mapping) or not all(isinstance(state, Mapping) for state in modules.values()):
        raise PolicyError(
            f"{path}: not laid out as {{'model': {{module: state dict}}}}; give a checkpoint of the release"
        )
    tensors = {f"{module}.{key}": value for module, state in modules.items() for key, value in state.items()}
    strange = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if strange:
        raise PolicyError(f"{path}: not tensors: {', '.join(strange)}; give a checkpoint of the release")
    return tensors


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise pickle.UnpicklingError("no archive of tensors")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _config(directory: Path, path: Path, tensors: Mapping[str, Tensor], options: ReleaseOptions) -> MLAConfig:
    """The configuration that the tensors, the sidecars and the statistics add up to."""

    def size(*witnesses: tuple[str, int]) -> int:
        """The width that most of the (name pattern, axis) witnesses agree on: one damaged tensor misleads nobody."""
        votes = Counter(
            int(tensor.shape[axis])
            for pattern, axis in witnesses
            for name, tensor in tensors.items()
            if re.fullmatch(pattern, name) and tensor.ndim > axis
        )
        if not votes:
            wanted = ", ".join(pattern.replace("\\", "").replace(".d+.", ".*.") for pattern, _ in witnesses)
            raise PolicyError(
                f"{path}: has none of {wanted}, from which a width is read; give a checkpoint of the release"
            )
        return votes.most_common(1)[0][0]

    llm = r"llm_backbone\.llm\.model"
    layer = rf"{llm}\.layers\.\d+"
    encoder = r"vision_tower_3d\.patch_embed\.EncP"
    hidden = size(
        (rf"{llm}\.norm\.weight", 0),
        (rf"{llm}\.embed_tokens\.weight", 1),
        (rf"{layer}\.input_layernorm\.weight", 0),
        (r"(x|proprio)_embedder\.mlp\.fc2\.weight", 0),
        (r"projector_[23]d\..*\.2\.weight", 0),
    )
    given = _settings(directory, options, hidden)
    keys = size((rf"{layer}\.self_attn\.[kv]_proj\.weight", 0))
    if (keys * given["heads"]) % hidden:
        raise PolicyError(
            f"{path}: {given['heads']} heads do not fit k_proj with {keys} rows at width {hidden}; give heads"
        )
    numbers = size((r"(x|proprio)_embedder\.mlp\.fc1\.weight", 1), (r"final_layer\.mlp\.fc2\.(weight|bias)", 0))
    statistics = _statistics(directory, given.get("statistics"))
    return MLAConfig(
        name=directory.resolve().name,
        hidden_size=hidden,
        layers=_count(tensors, rf"{llm}\.layers\.(\d+)\."),
        heads=given["heads"],
        kv_heads=keys * given["heads"] // hidden,
        intermediate_size=size((rf"{layer}\.mlp\.(gate|up)_proj\.weight", 0)),
        vocab_size=size((rf"{llm}\.embed_tokens\.weight", 0), (r"llm_backbone\.llm\.lm_head\.weight", 0)),
        action_spec=_action_spec(path, numbers),
        state=_normalisation(directory, statistics, "proprio"),
        action=_normalisation(directory, statistics, "action"),
        rms_norm_eps=given["rms_norm_eps"],
        rope_theta=given["rope_theta"],
        image_width=size((r"vision_tower_2d\..*(patch_embedding|proj|q\.0)\.weight", 0)),
        image_heads=given.get("image_heads", 8),
        point_width=size((rf"{encoder}\.raw_point_embed\.net\.[01]\.weight", 0)),
        point_neighbours=given.get("point_neighbours", 81),
        point_blocks=tuple(
            _count(tensors, rf"{encoder}\.LGA_list\.{stage}\.linear2\.(\d+)\.")
            for stage in range(_count(tensors, rf"{encoder}\.LGA_list\.(\d+)\."))
        ),
        point_outputs=size((r"vision_tower_3d\.proj\.weight", 0), (r"projector_3d\.projector\.0\.weight", 1)),
        action_window=given["action_window"],
        ddim_steps=given["ddim_steps"],
        views=tuple(given.get("views", ("front",))),
        cameras=dict(given.get("cameras", {"front": "rlbench_front"})),
    )


def _settings(directory: Path, options: ReleaseOptions, hidden: int) -> dict[str, Any]:
    """What tensors do not fix, from the first source that says it; raises PolicyError naming what none says."""
    known = {f.name for f in fields(ReleaseOptions)}
    sources: list[Mapping[str, Any]] = [{f.name: getattr(options, f.name) for f in fields(options)}]
    if (directory / SIDECAR).is_file():
        sidecar = read_json(directory / SIDECAR)
        unknown = sorted({*sidecar} - known)
        if unknown:
            raise PolicyError(f"{directory / SIDECAR}: unknown keys {unknown}; known are {sorted(known)}")
        sources.append(sidecar)
    foreign = (directory / name for name in ("golden.json", "config.json"))
    sources.extend(_foreign_settings(read_json(path)) for path in foreign if path.is_file())
    if hidden == LLAMA_7B_WIDTH:
        sources.append(LLAMA_7B)
    found: dict[str, Any] = {}
    for source in reversed(sources):
        found.update({key: value for key, value in source.items() if value is not None})
    for key, value in found.items():
        kind = float if key in {"rms_norm_eps", "rope_theta"} else int if key in INTEGERS else None
        if kind and (isinstance(value, bool) or not isinstance(value, int | kind)):
            raise PolicyError(
                f"{directory}: {key} = {value!r} is not a number of its kind; mend {SIDECAR} or the option"
            )
    missing = [key for key in LLAMA_7B if key not in found]
    if missing:
        raise PolicyError(
            f"{directory}: the tensors (width {hidden}) do not say {', '.join(missing)}; put them into {SIDECAR} "
            "there or give them as options"
        )
    return found


def _foreign_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a golden.json or the release's own config.json spells in its own way."""
    flat = {**data, **data["vla"]} if isinstance(data.get("vla"), Mapping) else dict(data)
    settings = {key: flat[key] for key in ("heads", "rms_norm_eps", "rope_theta", "ddim_steps") if key in flat}
    following = flat.get("future_action_window_size")
    if following is not None:
        settings["action_window"] = following + 1 if isinstance(following, int) else following  # refused by its kind
    return settings


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that `pattern` finds in the names of `tensors`."""
    return max((int(match.group(1)) for name in tensors if (match := re.match(pattern, name))), default=-1) + 1


def _action_spec(path: Path, size: int) -> ActionSpec:
    """The release's actions: translation offset and absolute rotation in the world frame; the form follows the size."""
    for form in ("euler_xyz", "rot6d"):
        if size == 4 + ROTATION_SIZES[form]:
            return ActionSpec(frame="world", rotation_form=form)
    raise PolicyError(f"{path}: actions of {size} numbers; known are 7 (euler angles) and 10 (two rotation columns)")


def _statistics(directory: Path, key: str | None) -> Mapping[str, Any]:
    data = read_json(directory / STATISTICS)
    if key is None and len(data) != 1:
        raise PolicyError(
            f"{directory / STATISTICS}: holds {sorted(data)}; choose one of them with the option statistics"
        )
    chosen = next(iter(data)) if key is None else key
    if not isinstance(data.get(chosen), Mapping):
        raise PolicyError(f"{directory / STATISTICS}: no statistics {chosen!r}; it holds {sorted(data)}")
    found: Mapping[str, Any] = data[chosen]
    return found


def _normalisation(directory: Path, statistics: Mapping[str, Any], part: str) -> Normalisation:
    entry: Any = statistics.get(part)
    try:
        low, high = (tuple(float(value) for value in entry[key]) for key in ("q01", "q99"))
        mask = tuple(bool(value) for value in entry.get("mask", (True,) * len(low)))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise PolicyError(
            f"{directory / STATISTICS}: {part!r} lacks usable q01, q99 and mask ({error}); restore the file of the run"
        ) from error
    return Normalisation(low, high, mask)
