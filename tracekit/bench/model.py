"""One control step at the widths of the release: as it runs, with encoders once, with prefix reuse, and pruned.

Weights are random: time depends on shapes and dtype, not on values. Every control step runs through the engine that
live runs and replays use; its parts (encoders, decoder layers, vocabulary head) are lines of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tracekit.bench.costs import Cost, decoder_cost, encoder_cost, head_cost, kv_cache_bytes, tail_cost
from tracekit.bench.limits import Limits, LimitsProbe
from tracekit.bench.measuring import Bound, Line, Measured, Times, median_limits, take_turns
from tracekit.config import Configuration, ExecutionConfig, ObserveConfig, ReuseConfig
from tracekit.engine import Controller, execution_threads
from tracekit.errors import ConfigError
from tracekit.fingerprint import environment_fingerprint
from tracekit.model import CAMERAS, MLA, IdTable, MLAConfig, Normalisation, mla_7b, reference
from tracekit.model.layers import projections
from tracekit.model.policy import DTYPES
from tracekit.observation import Observation
from tracekit.policy import Precision
from tracekit.pruning import PRUNERS

__all__ = ["ModelReport", "bench_model", "preset_config"]

INSTRUCTION = "close box"
TEXT_IDS = (1, *range(3, 17))
TAIL_ID = 2
UID = 1
TAIL_ROWS = 4
"""Timestep, noisy action, and the padding to a row count whose products do not depend on it."""

MODULES, PLAIN = "one layer's products, its modules", "one layer's products, plain"
FULL_WIDTH = 4096
"""Narrower decoders are not held to bounds: between their small products the machine's limits say little."""

MOST_PRODUCTS = 1.10
"""A layer's linear products may take a tenth more than plain products of their shapes."""

MOST_PREFILL = 1.15
"""Prefill may take 15 % more than FLOPs / rate + bytes / bandwidth."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What `tracekit bench model` prints.

    `limits`: medians of what was measured beside every line. `parts`: encoders, decoder, vocabulary head, products of a
    layer. `steps`: whole control steps. `bounds`: what a decoder of full width is held to. `kv_bytes`: of the prefix's
    cache.
    """

    preset: str
    device: str
    dtype: str
    limits: Limits
    parts: tuple[Line, ...]
    steps: tuple[Line, ...]
    bounds: tuple[Bound, ...]
    kv_bytes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "preset": self.preset,
            "device": self.device,
            "device_name": torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else None,
            "dtype": self.dtype,
            "matrix_flops_per_s": self.limits.matrix_rate,
            "bandwidth_bytes_per_s": self.limits.bandwidth,
            "parts": [line.to_json() for line in self.parts],
            "steps": [line.to_json() for line in self.steps],
            "bounds": [bound.to_json() for bound in self.bounds],
            "kv_bytes": self.kv_bytes,
            "fingerprint": environment_fingerprint(),
        }


def preset_config(preset: str) -> MLAConfig:
    """Widths of `mla-7b`, `mla-1layer` (one layer of it) or `reference`; raises ConfigError for another name."""
    if preset == "reference":
        return replace(reference(), cameras={"front": "rlbench_front"})
    low, high = (-1.0,) * 7, (1.0,) * 7
    release = mla_7b(Normalisation(low, high, (True,) * 7), Normalisation(low, high, (True,) * 7))
    found = {"mla-7b": release, "mla-1layer": replace(release, name="mla-1layer", layers=1)}
    if preset not in found:
        raise ConfigError(f"--preset {preset}: choose one of mla-7b, mla-1layer, reference")
    return found[preset]


def bench_model(
    preset: str,
    *,
    device: str = "cpu",
    dtype: str = "bfloat16",
    rates: Sequence[float] = (0.5, 0.6, 0.7, 0.8),
    rounds: int = 5,
    threads: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelReport:
    """Measure one control step of random weights at the widths of `preset`; `rates`: pruned share per modality.

    Raises ConfigError for an unknown preset, a device that is not there, or rates outside (0, 1).
    """
    if device not in {"cpu", "cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))}:
        raise ConfigError(f"--device {device}: torch sees no such device here; use --device cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no such device here; use --device cpu")
    if not all(0 < rate < 1 for rate in rates):
        raise ConfigError(f"--rates {','.join(map(str, rates))}: each must lie between 0 and 1")
    execution = ExecutionConfig(dtype=dtype, threads=threads)  # type: ignore[arg-type]  # ExecutionConfig's loader checks it
    with execution_threads(execution), torch.inference_mode():
        policy = _random_policy(preset_config(preset), Precision(dtype=dtype, device=device))
        bench = _Bench(policy, execution, rounds, progress or (lambda *_: None))
        parts, steps = bench.parts(rates), bench.steps(rates)
        limits = median_limits(bench.times)
        return ModelReport(preset, device, dtype, limits, parts, steps, bench.bounds(rates), bench.kv_bytes(rates))


class _Bench:
    """A policy, an observation in front of it, and the machine's limits."""

    def __init__(
        self, policy: MLA, execution: ExecutionConfig, rounds: int, progress: Callable[[str, int, int], None]
    ) -> None:
        self.policy, self.execution, self.rounds, self.progress = policy, execution, rounds, progress
        self.device = policy.precision.device
        self.item_bytes = 2 if policy.precision.dtype == "bfloat16" else 4
        self.probe = LimitsProbe(torch.bfloat16 if self.item_bytes == 2 else torch.float32, self.device)
        self.observation = _observation(policy)
        self.tokens = policy.tokenize(self.observation)
        self.length = self.tokens.layout.length
        self.visual = len(self.tokens.layout.visual_positions)
        self.tail = 1 + policy.config.action_window
        self.times: dict[str, Times] = {}

    def rows(self, rate: float) -> int:
        """Rows of the whole sequence with a share `rate` of both modalities pruned."""
        kept = 2 * round(self.visual / 2 * (1 - rate))
        return self.length - self.visual + kept

    def held(self, length: int) -> int:
        """Rows of the prefix among `length`: all but timestep, noisy action and the tail token."""
        return length - self.tail - 1

    def lengths(self, rates: Sequence[float]) -> dict[str, int]:
        """Rows of the whole sequence, unpruned and at every rate."""
        return {"full": self.length, **{f"r = {rate:.0%}": self.rows(rate) for rate in rates}}

    def parts(self, rates: Sequence[float]) -> tuple[Line, ...]:
        """Encoders, decoder layers at every length, a cached tail, the head, a layer's products against plain ones."""
        config, policy = self.policy.config, self.policy
        encoders = encoder_cost(config, self.item_bytes)
        calls = {"encoders": Measured(lambda: policy.embed_prefix(self.tokens, (0, 0)), encoders)}
        for name, length in self.lengths(rates).items():
            held, tokens = self.held(length), length - (self.length - self.visual)
            prefill = decoder_cost(config, held, 0, self.item_bytes)
            tail = decoder_cost(config, TAIL_ROWS, held, self.item_bytes)
            calls[self._prefill_name(name)] = Measured(self._prefill(held), prefill, tokens)
            calls[f"cached tail, {name}, {TAIL_ROWS} rows over {held}"] = Measured(self._tail(held), tail, tokens)
        whole = decoder_cost(config, self.length, 0, self.item_bytes)
        calls[f"LLM layers, one release pass, {self.length} rows"] = Measured(
            self._whole(self.length), whole, self.visual
        )
        head, hidden = policy.llm_backbone.llm.lm_head, self._rows(self.length)
        head_only = head_cost(config, self.length, self.item_bytes)
        calls[f"lm_head, {self.length} rows"] = Measured(lambda: head(hidden), head_only)
        return self._lines(calls | self._products())

    def bounds(self, rates: Sequence[float]) -> tuple[Bound, ...]:
        """What `parts` is held to: its products to plain ones, prefill to the machine's limits. `parts` goes first."""
        if self.policy.config.hidden_size < FULL_WIDTH:
            return ()
        ours, plain = (self.times[name].milliseconds for name in (MODULES, PLAIN))
        found = [Bound.between("a layer's products / plain products", ours, plain, MOST_PRODUCTS)]
        for name, length in self.lengths(rates).items():
            times = self.times[self._prefill_name(name)]
            cost = decoder_cost(self.policy.config, self.held(length), 0, self.item_bytes)
            found.append(
                Bound.between(f"prefill, {name} / limit", times.milliseconds, times.limits_ms(cost), MOST_PREFILL)
            )
        return tuple(found)

    def steps(self, rates: Sequence[float]) -> tuple[Line, ...]:
        """Whole control steps through the engine; the vocabulary head is left out, as it feeds no action."""
        config, passes, full = self.policy.config, self.policy.passes, self.length
        base = Configuration(execution=self.execution)
        cached = ReuseConfig(kind="prefix_kv", fps="pinned")
        encoders = encoder_cost(config, self.item_bytes)
        around = tail_cost(config, self.item_bytes)
        whole = decoder_cost(config, full, 0, self.item_bytes) + around
        once = encoders + around.times(passes)
        plan = {
            f"release: {passes} full passes, encoders each, no lm_head": (base, (encoders + whole).times(passes)),
            f"encoders once, {passes} full passes": (
                replace(base, reuse=ReuseConfig(kind="encoders", fps="pinned")),
                encoders + whole.times(passes),
            ),
            "prefix reuse": (replace(base, reuse=cached), once + self._cached_cost(full, passes)),
        }
        for rate in rates:
            kept = self.rows(rate)
            pruner = PRUNERS["tri_stage"].config(stages=("s1", "s2"), budget="hard_topk", rate=rate)
            pruned = replace(base, kind="tri_stage", pruner=pruner, reuse=cached)
            plan[f"prefix reuse, r = {rate:.0%}, current"] = (
                pruned,
                once + self._cached_cost(full, 1) + self._cached_cost(kept, passes - 1),
            )
            plan[f"prefix reuse, r = {rate:.0%}, lagged"] = (
                replace(pruned, observe=ObserveConfig(mode="lagged")),
                once + self._cached_cost(kept, passes),
            )
        calls = {}
        for name, (configuration, cost) in plan.items():
            controller = Controller(self.policy, configuration)
            controller.reset(UID)
            controller.step(self.observation)
            memory = controller.memory
            tokens = int(controller.step(self.observation).kept[-1].sum())
            calls[name] = Measured(self._second_step(controller, memory), cost, tokens)
        return self._lines(calls)

    def kv_bytes(self, rates: Sequence[float]) -> dict[str, int]:
        """Bytes of the prefix's keys and values, full and pruned."""
        rows = {name: self.held(length) for name, length in self.lengths(rates).items()}
        return {name: kv_cache_bytes(self.policy.config, held, self.item_bytes) for name, held in rows.items()}

    def _cached_cost(self, length: int, tails: int) -> Cost:
        config, held = self.policy.config, self.held(length)
        prefill = decoder_cost(config, held, 0, self.item_bytes)
        return prefill + decoder_cost(config, TAIL_ROWS, held, self.item_bytes).times(tails)

    def _second_step(self, controller: Controller, memory: Any) -> Callable[[], object]:
        def run() -> None:
            controller.reset(UID, steps=1, memory=memory)
            controller.step(self.observation)

        return run

    def _rows(self, length: int) -> torch.Tensor:
        return torch.rand(length, self.policy.config.hidden_size, device=self.device)

    @staticmethod
    def _prefill_name(length: str) -> str:
        return f"prefill, {length}"

    def _prefill(self, held: int) -> Callable[[], object]:
        """As the engine does it: a new cache, and every row of the prefix through all layers."""
        rows, positions = self._rows(held), torch.arange(held, device=self.device)
        return lambda: self.policy.forward(rows, positions, self.policy.new_cache(held + TAIL_ROWS))

    def _whole(self, length: int) -> Callable[[], object]:
        rows, positions = self._rows(length), torch.arange(length, device=self.device)
        return lambda: self.policy.forward(rows, positions)

    def _tail(self, held: int) -> Callable[[], object]:
        cache = self.policy.new_cache(held + TAIL_ROWS)
        self.policy.forward(self._rows(held), torch.arange(held, device=self.device), cache)
        rows, positions = self._rows(TAIL_ROWS), torch.arange(held, held + TAIL_ROWS, device=self.device)

        def run() -> None:
            self.policy.forward(rows, positions, cache)
            cache.forget(4)

        return run

    def _products(self) -> dict[str, Measured]:
        """The seven linear products of a layer, by its modules and as plain products of the same shapes."""
        layer = self.policy.backbone.layers[0]
        modules = [getattr(layer.self_attn, f"{name}_proj") for name in "qkvo"]
        modules += [getattr(layer.mlp, f"{name}_proj") for name in ("gate", "up", "down")]
        dtype = self.policy.backbone.dtype
        weights = [torch.rand(module.weight.shape, device=self.device).to(dtype) for module in modules]
        inputs = [torch.rand(self.length, w.shape[1], device=self.device).to(w.dtype) for w in weights]
        numbers = sum(w.numel() for w in weights)
        cost = Cost(2.0 * self.length * numbers, float(numbers * self.item_bytes))
        linear = torch.nn.functional.linear
        return {
            MODULES: Measured(lambda: [module(x) for module, x in zip(modules, inputs, strict=True)], cost),
            PLAIN: Measured(lambda: [linear(x, w) for x, w in zip(inputs, weights, strict=True)], cost),
        }

    def _lines(self, calls: dict[str, Measured]) -> tuple[Line, ...]:
        found = take_turns(calls, self.probe, self.device, self.rounds, self.progress)
        self.times |= found
        return tuple(Line.of(name, call, found[name]) for name, call in calls.items())


def _random_policy(config: MLAConfig, precision: Precision) -> MLA:
    """Weights drawn on the device, in the dtype they run in, uniform and small enough that activations stay finite.

    Not frozen: nothing here is filed under an identity, and a digest of 7 billion weights takes minutes.
    """
    with torch.device("meta"):
        policy = MLA(config, IdTable({INSTRUCTION: TEXT_IDS}, tail_id=TAIL_ID))
    for module in projections(policy):
        module.to(DTYPES[precision.dtype])
    policy.requires_grad_(False).to_empty(device=precision.device)
    generator = torch.Generator(device=precision.device).manual_seed(0)
    for parameter in policy.parameters():
        bound = 1 / math.sqrt(parameter.shape[-1])
        parameter.uniform_(-bound, bound, generator=generator)
    for name, buffer in policy.named_buffers():
        buffer.fill_(1 if name.endswith("running_var") else 0)
    return policy.cast(precision)


def _observation(policy: MLA) -> Observation:
    """A grey image and a cloud in front of the release's camera."""
    rng = np.random.default_rng(0)
    view = policy.config.views[0]
    cloud = rng.uniform((-0.2, -0.5, 0.8), (0.6, 0.5, 1.4), (policy.config.points, 3)).astype(np.float32)
    return Observation(
        images={view: rng.integers(0, 255, (224, 224, 3), np.uint8)},
        points=cloud,
        state=np.zeros(policy.action_spec.size),
        instruction=INSTRUCTION,
        cameras={view: CAMERAS["rlbench_front"]},
    )
