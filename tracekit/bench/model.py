"""One control step at the widths of the release: as it runs, with encoders once, with prefix reuse, and pruned.

Weights are random: time depends on shapes and dtype, not on values. Every control step runs through the engine that
live runs and replays use; its parts (encoders, decoder layers, vocabulary head) are lines of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from tracekit.bench.costs import Cost, decoder_cost, head_cost, kv_cache_bytes
from tracekit.bench.limits import Limits, measure_limits, timed_once_ms
from tracekit.config import Configuration, ExecutionConfig, ObserveConfig, ReuseConfig
from tracekit.engine import Controller, execution_threads
from tracekit.errors import ConfigError
from tracekit.fingerprint import environment_fingerprint
from tracekit.model import CAMERAS, MLA, IdTable, MLAConfig, Normalisation, mla_7b, reference
from tracekit.observation import Observation
from tracekit.policy import Precision
from tracekit.pruning import PRUNERS

__all__ = ["Line", "ModelReport", "bench_model", "preset_config"]

INSTRUCTION = "close box"
TEXT_IDS = (1, *range(3, 17))
TAIL_ID = 2
UID = 1


@dataclass(frozen=True, slots=True)
class Line:
    """One measured thing: median and range over the rounds; `limit_ms` = FLOPs/rate + bytes/bandwidth.

    `tokens`: visual tokens in the pruned passes. `decoder_flops`, `decoder_bytes`: of the decoder alone, None for the
    encoders, whose operations are not counted.
    """

    name: str
    median_ms: float
    spread_ms: float
    tokens: int | None
    decoder_flops: float | None
    decoder_bytes: float | None
    limit_ms: float | None

    @property
    def efficiency(self) -> float | None:
        """Limit / measured."""
        return None if self.limit_ms is None else self.limit_ms / self.median_ms

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"efficiency": self.efficiency}


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What `tracekit bench model` prints: machine limits, parts, products of the layers, whole control steps."""

    preset: str
    device: str
    dtype: str
    limits: Limits
    parts: tuple[Line, ...]
    steps: tuple[Line, ...]
    kv_bytes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "preset": self.preset,
            "device": self.device,
            "device_name": torch.cuda.get_device_name() if self.device.startswith("cuda") else None,
            "dtype": self.dtype,
            "matrix_flops_per_s": self.limits.matrix_rate,
            "bandwidth_bytes_per_s": self.limits.bandwidth,
            "parts": [line.to_json() for line in self.parts],
            "steps": [line.to_json() for line in self.steps],
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
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: torch sees no such device here; use --device cpu")
    if not all(0 < rate < 1 for rate in rates):
        raise ConfigError(f"--rates {','.join(map(str, rates))}: each must lie between 0 and 1")
    execution = ExecutionConfig(dtype=dtype, threads=threads)  # type: ignore[arg-type]  # ExecutionConfig's loader checks it
    with execution_threads(execution), torch.inference_mode():
        policy = _random_policy(preset_config(preset), Precision(dtype=dtype, device=device))
        bench = _Bench(policy, execution, rounds, progress or (lambda *_: None))
        parts = bench.parts(rates)
        return ModelReport(preset, device, dtype, bench.limits, parts, bench.steps(rates), bench.kv_bytes(rates))


@dataclass(frozen=True, slots=True)
class _Measured:
    """A call to time, what it costs by counting, and the visual tokens in it."""

    run: Callable[[], object]
    cost: Cost | None = None
    tokens: int | None = None


class _Bench:
    """A policy, an observation in front of it, and the machine's limits."""

    def __init__(
        self, policy: MLA, execution: ExecutionConfig, rounds: int, progress: Callable[[str, int, int], None]
    ) -> None:
        self.policy, self.execution, self.rounds, self.progress = policy, execution, rounds, progress
        self.device = policy.precision.device
        self.item_bytes = 2 if policy.precision.dtype == "bfloat16" else 4
        dtype = torch.bfloat16 if self.item_bytes == 2 else torch.float32
        self.limits = measure_limits(dtype, self.device, rounds)
        self.observation = _observation(policy)
        self.tokens = policy.tokenize(self.observation)
        self.length = self.tokens.layout.length
        self.visual = len(self.tokens.layout.visual_positions)
        self.tail = 1 + policy.config.action_window

    def rows(self, rate: float) -> int:
        """Rows of the whole sequence with a share `rate` of both modalities pruned."""
        kept = 2 * round(self.visual / 2 * (1 - rate))
        return self.length - self.visual + kept

    def parts(self, rates: Sequence[float]) -> tuple[Line, ...]:
        """Encoders, decoder layers at every length, a cached tail, the head, a layer's products against plain ones."""
        config, policy = self.policy.config, self.policy
        lengths = {"full": self.length, **{f"r = {rate:.0%}": self.rows(rate) for rate in rates}}
        calls = {"encoders": _Measured(lambda: policy.embed_prefix(self.tokens, (0, 0)))}
        for name, length in lengths.items():
            held, tokens = length - self.tail - 1, length - (self.length - self.visual)
            whole, tail = (
                decoder_cost(config, length, 0, self.item_bytes),
                decoder_cost(config, 4, held, self.item_bytes),
            )
            calls[f"decoder, {name}, {length} rows"] = _Measured(self._whole(length), whole, tokens)
            calls[f"cached tail, {name}, 4 rows over {held}"] = _Measured(self._tail(held), tail, tokens)
        head, hidden = policy.llm_backbone.llm.lm_head, self._rows(self.length)
        head_only = head_cost(config, self.length, self.item_bytes)
        calls[f"lm_head, {self.length} rows"] = _Measured(lambda: head(hidden), head_only)
        return self._measure(calls | self._products())

    def steps(self, rates: Sequence[float]) -> tuple[Line, ...]:
        """Whole control steps through the engine; the vocabulary head is left out, as it feeds no action."""
        config, passes, full = self.policy.config, self.policy.passes, self.length
        base = Configuration(execution=self.execution)
        cached = ReuseConfig(kind="prefix_kv", fps="pinned")
        whole = decoder_cost(config, full, 0, self.item_bytes)
        plan = {
            f"release: {passes} full passes, encoders each": (base, whole.times(passes)),
            f"encoders once, {passes} full passes": (
                replace(base, reuse=ReuseConfig(kind="encoders", fps="pinned")),
                whole.times(passes),
            ),
            "prefix reuse": (replace(base, reuse=cached), self._cached_cost(full, passes)),
        }
        for rate in rates:
            kept = self.rows(rate)
            pruner = PRUNERS["tri_stage"].config(stages=("s1", "s2"), budget="hard_topk", rate=rate)
            pruned = replace(base, kind="tri_stage", pruner=pruner, reuse=cached)
            plan[f"prefix reuse, r = {rate:.0%}, current"] = (
                pruned,
                self._cached_cost(full, 1) + self._cached_cost(kept, passes - 1),
            )
            plan[f"prefix reuse, r = {rate:.0%}, lagged"] = (
                replace(pruned, observe=ObserveConfig(mode="lagged")),
                self._cached_cost(kept, passes),
            )
        calls = {}
        for name, (configuration, cost) in plan.items():
            controller = Controller(self.policy, configuration)
            controller.reset(UID)
            controller.step(self.observation)
            memory = controller.memory
            tokens = int(controller.step(self.observation).kept[-1].sum())
            calls[name] = _Measured(self._second_step(controller, memory), cost, tokens)
        return self._measure(calls)

    def kv_bytes(self, rates: Sequence[float]) -> dict[str, int]:
        """Bytes of the prefix's keys and values, full and pruned."""
        named = {"full": self.length, **{f"r = {rate:.0%}": self.rows(rate) for rate in rates}}
        rows = {name: length - self.tail - 1 for name, length in named.items()}
        return {name: kv_cache_bytes(self.policy.config, held, self.item_bytes) for name, held in rows.items()}

    def _cached_cost(self, length: int, tails: int) -> Cost:
        config, held = self.policy.config, length - self.tail - 1
        prefill = decoder_cost(config, held, 0, self.item_bytes)
        return prefill + decoder_cost(config, 4, held, self.item_bytes).times(tails)

    def _second_step(self, controller: Controller, memory: Any) -> Callable[[], object]:
        def run() -> None:
            controller.reset(UID, steps=1, memory=memory)
            controller.step(self.observation)

        return run

    def _rows(self, length: int) -> torch.Tensor:
        return torch.rand(length, self.policy.config.hidden_size, device=self.device)

    def _whole(self, length: int) -> Callable[[], object]:
        rows, positions = self._rows(length), torch.arange(length, device=self.device)
        return lambda: self.policy.forward(rows, positions)

    def _tail(self, held: int) -> Callable[[], object]:
        cache = self.policy.new_cache(held + 4)
        self.policy.forward(self._rows(held), torch.arange(held, device=self.device), cache)
        rows, positions = self._rows(4), torch.arange(held, held + 4, device=self.device)

        def run() -> None:
            self.policy.forward(rows, positions, cache)
            cache.forget(4)

        return run

    def _products(self) -> dict[str, _Measured]:
        """The seven linear products of a layer, by its modules and as plain products of the same shapes."""
        layer = self.policy.backbone.layers[0]
        modules = [getattr(layer.self_attn, f"{name}_proj") for name in "qkvo"]
        modules += [getattr(layer.mlp, f"{name}_proj") for name in ("gate", "up", "down")]
        weights = [torch.rand_like(module.weight) for module in modules]
        inputs = [torch.rand(self.length, w.shape[1], device=self.device).to(w.dtype) for w in weights]
        numbers = sum(w.numel() for w in weights)
        cost = Cost(2.0 * self.length * numbers, float(numbers * self.item_bytes))
        linear = torch.nn.functional.linear
        return {
            "one layer's products, its modules": _Measured(
                lambda: [module(x) for module, x in zip(modules, inputs, strict=True)], cost
            ),
            "one layer's products, plain": _Measured(
                lambda: [linear(x, w) for x, w in zip(inputs, weights, strict=True)], cost
            ),
        }

    def _measure(self, calls: dict[str, _Measured]) -> tuple[Line, ...]:
        """All calls once per round, interleaved, so that a slow moment hits them alike."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call.run()
        for round_index in range(self.rounds):
            for name, call in calls.items():
                times[name].append(timed_once_ms(call.run, self.device))
            self.progress("measuring", round_index + 1, self.rounds)
        return tuple(self._line(name, times[name], call.cost, call.tokens) for name, call in calls.items())

    def _line(self, name: str, times: list[float], cost: Cost | None, tokens: int | None) -> Line:
        return Line(
            name=name,
            median_ms=float(np.median(times)),
            spread_ms=float(np.ptp(times)),
            tokens=tokens,
            decoder_flops=None if cost is None else cost.flops,
            decoder_bytes=None if cost is None else cost.nbytes,
            limit_ms=None if cost is None else self.limits.milliseconds(cost.flops, cost.nbytes),
        )


def _random_policy(config: MLAConfig, precision: Precision) -> MLA:
    """Weights drawn on the device itself, uniform and small enough that activations stay finite."""
    table = IdTable({INSTRUCTION: TEXT_IDS}, tail_id=TAIL_ID)
    with torch.device("meta"):
        policy = MLA(config, table)
    policy.to_empty(device=precision.device)
    generator = torch.Generator(device=precision.device).manual_seed(0)
    for parameter in policy.parameters():
        bound = 1 / math.sqrt(parameter.shape[-1])
        parameter.uniform_(-bound, bound, generator=generator)
    for name, buffer in policy.named_buffers():
        buffer.fill_(1 if name.endswith("running_var") else 0)
    return policy.freeze(precision)


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
