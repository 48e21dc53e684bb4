"""What a recording keeps of a forward pass, and what that costs in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from tracekit.errors import ConfigError

__all__ = ["GROUPS", "PRESETS", "CaptureSpec", "chosen"]

Group = Literal["text", "state", "action"]
Feature = Literal["prenorm", "postnorm", "logits"]
Site = Literal["block", "attention", "mlp"]
Indices = tuple[int, ...]
Embeddings = Literal["none", "first_pass", "all_passes"]

GROUPS: tuple[Group, ...] = ("text", "state", "action")
"""Query groups, in the order of the `query_group` axis."""

PRESETS = ("minimal", "default", "baselines", "full")
"""Names of the presets, from the smallest to the largest."""


@dataclass(frozen=True, slots=True)
class CaptureSpec:
    """Observables to take, of denoise pass 0 unless said otherwise. The presets are class methods.

    `groups`, `layers`, `heads`: of the attention received per visual token, the mean over each group's rows;
    `last_quarter` means the last ⌈L/4⌉ layers. `norms`: final-layer features whose L1 norms are taken; `logits` costs a
    product over the vocabulary. `later_action_rows`: attention of the action rows in passes 1, 2, …, head means.
    `last_row`: attention of the last text row, head means. `qk_text_layer0`: layer 0's q·k/√d of text rows and visual
    keys, before softmax and without RoPE, mean over rows and heads. `mean_all_rows`: attention of all prefix rows, mean
    over rows and heads; `attention_entropy`: that of their distributions in nats, the same mean, per layer.
    `maps`: layers whose whole attention maps are kept. `hidden`: what is kept of the layers `hidden_layers`: the
    residual stream after the `block`, the output of its `attention` or `mlp`. `embeddings`: prefix rows as they were
    fed, of no pass, of pass 0 (image and text tokens are the same in every pass), or of all.
    """

    name: str = "default"
    groups: tuple[Group, ...] = GROUPS
    layers: Literal["all", "last_quarter"] | Indices = "all"
    heads: Literal["all"] | Indices = "all"
    norms: tuple[Feature, ...] = ("prenorm", "postnorm")
    later_action_rows: bool = True
    last_row: bool = True
    qk_text_layer0: bool = True
    mean_all_rows: bool = False
    attention_entropy: bool = False
    maps: Literal["all"] | Indices = ()
    hidden: tuple[Site, ...] = ()
    hidden_layers: Literal["all"] | Indices = "all"
    embeddings: Embeddings = "first_pass"

    def __post_init__(self) -> None:
        for name, choices in (("groups", Group), ("norms", Feature), ("hidden", Site)):
            given = getattr(self, name)
            if isinstance(given, str) or not set(given) <= set(get_args(choices)) or len(set(given)) < len(given):
                raise ConfigError(
                    f"capture.{name} = {given!r}: give a tuple of {', '.join(get_args(choices))}, each at most once"
                )
        for name, words in (
            ("layers", ("all", "last_quarter")),
            ("heads", ("all",)),
            ("maps", ("all",)),
            ("hidden_layers", ("all",)),
        ):
            given = getattr(self, name)
            wrong = (
                given not in words
                if isinstance(given, str)
                else list(given) != sorted({*given}) or min(given, default=0) < 0
            )
            if wrong or (not given and name in {"layers", "heads"}):
                raise ConfigError(f"capture.{name} = {given!r}: give {' or '.join(words)}, or ascending indices from 0")
        if self.embeddings not in get_args(Embeddings):
            raise ConfigError(
                f"capture.embeddings = {self.embeddings!r}: choose one of {', '.join(get_args(Embeddings))}"
            )

    @classmethod
    def minimal(cls) -> CaptureSpec:
        """What the default reduction's scores are made of, and no more."""
        return cls(
            "minimal",
            groups=("text", "action"),
            layers="last_quarter",
            norms=("prenorm",),
            later_action_rows=False,
            last_row=False,
            qk_text_layer0=False,
            embeddings="none",
        )

    @classmethod
    def default(cls) -> CaptureSpec:
        """All of the method's observables and the cheap ones of the baselines: within the overhead limit."""
        return cls()

    @classmethod
    def baselines(cls) -> CaptureSpec:
        """Enough for every pruner that the package ships. Needs whole attention maps for a moment: slower."""
        return cls("baselines", mean_all_rows=True, attention_entropy=True)

    @classmethod
    def full(cls) -> CaptureSpec:
        """Everything: also logit norms, all maps, all hidden states and the embeddings of all passes."""
        return cls(
            "full",
            norms=get_args(Feature),
            mean_all_rows=True,
            attention_entropy=True,
            maps="all",
            hidden=get_args(Site),
            embeddings="all_passes",
        )

    @classmethod
    def preset(cls, name: str) -> CaptureSpec:
        """The preset called `name`; raises ConfigError naming those that there are."""
        if name not in PRESETS:
            raise ConfigError(f"capture preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
        made: CaptureSpec = getattr(cls, name)()
        return made

    @property
    def whole_rows(self) -> bool:
        """Whether attention of all rows has to be rebuilt, not of a few."""
        return self.mean_all_rows or self.attention_entropy or bool(self.maps)

    def merged(self, other: CaptureSpec | None) -> CaptureSpec:
        """What is in either; keeps this one's name."""
        if other is None:
            return self
        found: dict[str, Any] = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name in {"groups", "norms", "hidden"}:
                order: Sequence[str] = get_args({"groups": Group, "norms": Feature, "hidden": Site}[field.name])
                found[field.name] = tuple(part for part in order if part in {*mine, *theirs})
            elif isinstance(mine, bool):
                found[field.name] = mine or theirs
            elif field.name == "embeddings":
                found[field.name] = max(mine, theirs, key=get_args(Embeddings).index)
            elif field.name != "name":
                found[field.name] = _either(mine, theirs)
        return replace(self, **found)


def chosen(which: str | Indices, count: int, what: str) -> list[int]:
    """Indices below `count` that a field of the specification names; raises ConfigError for one beyond."""
    if which == "all":
        return list(range(count))
    if which == "last_quarter":
        return list(range(count - -(-count // 4), count))
    indices = [int(index) for index in which]
    if indices and max(indices) >= count:
        raise ConfigError(
            f"{what} asked for by pruner.reduction or by the capture: the policy has {what} 0 to {count - 1}, not "
            f"{max(indices)}"
        )
    return indices


def _either(mine: str | Indices, theirs: str | Indices) -> str | Indices:
    """The union of two choices of indices; of a word and indices, everything."""
    if mine == theirs or not theirs:
        return mine
    if not mine:
        return theirs
    if isinstance(mine, str) or isinstance(theirs, str):
        return "all"
    return tuple(sorted({*mine, *theirs}))
