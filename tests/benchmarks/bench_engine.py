"""Whole pruned episodes through the engine: `python -m tests.benchmarks.bench_engine [--only NAME,…] [--json]`.

LLM layers only, as encoders and vocabulary head are left out on both sides: a step's wall time without `encode`, and
without what embeds the tail and reads the noise. Observation, decisions, cold start and refreshes are inside: an
episode of 14 steps has two unpruned ones under `lagged`. Sides take turns, the machine's limits are measured beside
them, and ratios are of one round; the figures are medians of the rounds. Targets at mla-1layer in bfloat16, lagged, r =
70 %: at least 11 x against the release's loop of 8 full passes (of a machine whose matrix rate is 12 FLOP per byte of
bandwidth), pruning alone at least 1.6 x, the whole step within 1.3 x of FLOPs / matrix rate + bytes / bandwidth; a
pruned prefill within 1.15 x of it.

What can be reached depends on that ratio, so the same factors at the machine's limits stand beside the measured ones.
A core with AMX does 50 to 70 FLOP per byte: eight readings of all weights for the tail are then most of a step, and the
limits themselves give 5.6 x. `ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16` makes it 8 of the same core, whose limits give 13 x.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from tracekit.bench.costs import Cost, decoder_cost
from tracekit.bench.limits import Limits, LimitsProbe
from tracekit.bench.model import _observation, _random_policy, preset_config
from tracekit.config import Configuration
from tracekit.engine import Beside, Captured, Controller, StepOptions, StepResult, run_together
from tracekit.model import MLA
from tracekit.policy import Precision
from tracekit.profiling import STAGES

STEPS, ROUNDS, TAIL_ROWS = 14, 5, 4
PINNED = {"fps": "pinned"}
PRUNED = ("lagged", "current", "kv drop")
JOBS = 8
DECISION = ("stage3", "stage1", "stage2", "fuse", "compact")
PREFILLED = (512, 384, 256, 128, 64)


def wide() -> Any:
    release = preset_config("mla-1layer")
    sizes = {"hidden_size": 1024, "heads": 16, "kv_heads": 16, "intermediate_size": 2752, "layers": 8}
    return replace(release, name="1024 x 8", **sizes)


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "mla-1layer bfloat16": (lambda: preset_config("mla-1layer"), "bfloat16"),
    "mla-1layer float32": (lambda: preset_config("mla-1layer"), "float32"),
    "1024x8 bfloat16": (wide, "bfloat16"),
    "1024x8 float32": (wide, "float32"),
    "reference float32": (lambda: preset_config("reference"), "float32"),
}


@dataclass(frozen=True, slots=True)
class Spent:
    """Milliseconds of one step: LLM layers with observation and decision inside, and parts of it."""

    llm: float
    around: float
    observe: float
    decide: float
    result: StepResult


class Bench:
    """A policy whose encoders run once, and the time that its embedders and its head take."""

    def __init__(self, config: Any, dtype: str) -> None:
        with torch.inference_mode():
            self.policy: MLA = _random_policy(config, Precision(dtype=dtype))
        self.dtype, self.item_bytes = dtype, 2 if dtype == "bfloat16" else 4
        self.observation = _observation(self.policy)
        self.around_ns = 0
        tokens = self.policy.tokenize(self.observation)
        with torch.inference_mode():
            prefix = self.policy.embed_prefix(tokens, (0, 0))
        self.policy.embed_prefix = lambda *_: prefix
        for name in ("embed_tail", "read_noise"):
            setattr(self.policy, name, self._timed(getattr(self.policy, name)))
        self.layout = tokens.layout
        self.probe = LimitsProbe(torch.bfloat16 if self.item_bytes == 2 else torch.float32, "cpu")

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter_ns()
            result = call(*args)
            self.around_ns += time.perf_counter_ns() - start
            return result

        return timed

    def config(self, **table: Any) -> Configuration:
        return Configuration.from_table({"execution": {"dtype": self.dtype, "threads": 2}, **table}, "bench")

    def steps(self, config: Configuration, count: int) -> list[Spent]:
        controller, found = Controller(self.policy, config), []
        controller.reset(1)
        for _ in range(count):
            self.around_ns = 0
            result = controller.step(self.observation)
            spent = dict(zip(STAGES, result.times_ns.sum(axis=1) / 1e6, strict=True))
            around = self.around_ns / 1e6
            found.append(
                Spent(
                    llm=result.wall_ns / 1e6 - spent["encode"] - around,
                    around=around,
                    observe=spent["observe"],
                    decide=sum(spent[stage] for stage in DECISION),
                    result=replace(result, captured=Captured(), memory=None),
                )
            )
        return found

    def cost(self, result: StepResult, *, cached: bool) -> Cost:
        """Of the decoder in one step, by counting; a cache is filled once per set of kept tokens."""
        policy, layout = self.policy, self.layout
        total, filled = Cost(0, 0), None
        for kept in result.kept:
            gone = int((~kept).sum())
            if not cached:
                total += decoder_cost(policy.config, layout.length - gone, 0, self.item_bytes)
                continue
            held = layout.prefix_length - gone
            if filled is None or not np.array_equal(filled, kept):
                total += decoder_cost(policy.config, held, 0, self.item_bytes)
                filled = kept
            total += decoder_cost(policy.config, TAIL_ROWS, held, self.item_bytes)
        return total


def side_by_side(bench: Bench, config: Configuration, steps: int) -> tuple[float, float]:
    """Milliseconds per step of `JOBS` episodes one after the other, and in throughput mode."""

    def job(beside: Beside | None) -> None:
        controller = Controller(bench.policy, config, StepOptions(beside=beside))
        controller.reset(1)
        for _ in range(steps):
            controller.step(bench.observation)

    start = time.perf_counter()
    for _ in range(JOBS):
        job(None)
    alone = time.perf_counter() - start
    run_together(bench.policy, [job] * JOBS, config.execution)
    return 1e3 * alone / JOBS / steps, 1e3 * (time.perf_counter() - start - alone) / JOBS / steps


def prefills(bench: Bench, rounds: int) -> dict[int, tuple[float, float]]:
    """Visual tokens -> milliseconds of a prefill over them and what else is in the prefix, and of its limit."""
    policy, others = bench.policy, bench.layout.prefix_length - len(bench.layout.visual_positions)
    found: dict[int, list[tuple[float, float]]] = {visual: [] for visual in PREFILLED}
    for _ in range(rounds + 1):
        for visual in PREFILLED:
            length = others + visual
            rows, positions = torch.rand(length, policy.config.hidden_size), torch.arange(length)
            machine, cost = bench.probe(), decoder_cost(policy.config, length, 0, bench.item_bytes)
            start = time.perf_counter()
            with torch.inference_mode():
                policy.forward(rows, positions, policy.new_cache(length))
            found[visual].append((1e3 * (time.perf_counter() - start), machine.milliseconds(cost.flops, cost.nbytes)))
    return {visual: (median(ms for ms, _ in own[1:]), median(limit for _, limit in own[1:]))
            for visual, own in found.items()}  # fmt: skip


def ratio(rounds: list[tuple[float, float]]) -> float:
    return median(one / other for one, other in rounds)


def episode(config: Any, dtype: str, rounds: int) -> dict[str, Any]:
    bench = Bench(config, dtype)
    pruner = {"kind": "tri_stage", "budget": "hard_topk", "rate": 0.7}
    cached = {"kind": "prefix_kv", **PINNED}
    sides = {
        "release": (bench.config(pruner={"kind": "none"}, reuse={"kind": "encoders", **PINNED}), 1),
        "prefix": (bench.config(pruner={"kind": "none"}, reuse=cached), 2),
        "lagged": (bench.config(pruner=pruner, reuse=cached, observe={"mode": "lagged"}), STEPS),
        "current": (bench.config(pruner=pruner, reuse=cached), STEPS),
        "kv drop": (bench.config(pruner=pruner, reuse={**cached, "kv": "drop"}), STEPS),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    limits: dict[str, list[float]] = {name: [] for name in sides}
    spent: dict[str, list[Spent]] = {}
    for configuration, count in sides.values():
        bench.steps(configuration, min(count, 2))
    for _ in range(rounds):
        for name, (configuration, count) in sides.items():
            machine: Limits = bench.probe()
            spent[name] = bench.steps(configuration, count)
            costs = [bench.cost(one.result, cached=name != "release") for one in spent[name]]
            times[name].append(float(np.mean([one.llm for one in spent[name]])))
            limits[name].append(float(np.mean([machine.milliseconds(cost.flops, cost.nbytes) for cost in costs])))
    pairs = {name: list(zip(times["release"], times[name], strict=True)) for name in sides}
    layers, scale = bench.policy.config.layers, 32 / bench.policy.config.layers
    fixed = {name: [median(one.decide for one in own), median(one.around for one in own)]
             for name, own in spent.items()}  # fmt: skip
    projected = {name: scale * (median(times[name]) - fixed[name][0]) + sum(fixed[name]) for name in sides}
    machine = bench.probe()
    together = [side_by_side(bench, sides["lagged"][0], 3) for _ in range(2)]
    return {
        "throughput_ms": median(both[1] for both in together),
        "throughput_gain": ratio(together),
        "layers": layers,
        "flops_per_byte": machine.matrix_rate / machine.bandwidth,
        "step_ms": {name: median(values) for name, values in times.items()},
        "limit_ms": {name: median(values) for name, values in limits.items()},
        "over_limit": {name: ratio(list(zip(times[name], limits[name], strict=True))) for name in sides},
        "total": {name: ratio(pairs[name]) for name in ("prefix", *PRUNED)},
        "total_at_the_limit": {name: ratio(list(zip(limits["release"], limits[name], strict=True))) for name in PRUNED},
        "pruning": {name: ratio(list(zip(times["prefix"], times[name], strict=True))) for name in PRUNED},
        "pruning_at_the_limit": {
            name: ratio(list(zip(limits["prefix"], limits[name], strict=True))) for name in PRUNED
        },
        "prefill_ms_and_limit": prefills(bench, rounds),
        "fixed_ms": {
            name: {
                "tail embedders and noise head": median(one.around for one in spent[name]),
                "observe": median(one.observe for one in spent[name]),
                "decide and gather": median(one.decide for one in spent[name]),
            }
            for name in sides
        },
        "projected_32_layers_ms": projected,
        "projected_32_layers_total": {name: projected["release"] / projected[name] for name in PRUNED},
        "kept": int(spent["lagged"][1].result.kept[0].sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    found = {}
    for name in options.only.split(","):
        config, dtype = CASES[name]
        found[name] = episode(config(), dtype, options.rounds)
        if not options.json:
            row = found[name]
            print(f"{name}: {row['layers']} layers, {row['kept']} of 512 visual tokens kept, "
                  f"{row['flops_per_byte']:.0f} FLOP per byte of bandwidth")  # fmt: skip
            for side, milliseconds in row["step_ms"].items():
                print(f"  {side:8} {milliseconds:8.1f} ms, {row['over_limit'][side]:.2f} x its limit", end="")
                if side in row["pruning"]:
                    print(f"; {row['total'][side]:.2f} x the release (limits: {row['total_at_the_limit'][side]:.2f} x)"
                          f", pruning {row['pruning'][side]:.2f} x ({row['pruning_at_the_limit'][side]:.2f} x)",
                          end="")  # fmt: skip
                print()
                fixed = ", ".join(f"{what} {ms:.2f}" for what, ms in row["fixed_ms"][side].items() if ms)
                print(f"             of it or beside it, ms per step: {fixed}")
            for visual, (ms, limit) in row["prefill_ms_and_limit"].items():
                print(f"  prefill over {visual} visual tokens {ms:8.1f} ms, {ms / limit:.2f} x its limit")
            print(f"  throughput mode, {JOBS} episodes: {row['throughput_ms']:.1f} ms per step, "
                  f"{row['throughput_gain']:.2f} x as fast as one step at a time")  # fmt: skip
            print("  32 layers, projected: " + ", ".join(
                f"{side} {ms:,.0f} ms" for side, ms in row["projected_32_layers_ms"].items())
                + f"; lagged {row['projected_32_layers_total']['lagged']:.2f} x the release")  # fmt: skip
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
