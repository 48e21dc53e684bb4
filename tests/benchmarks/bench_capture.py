"""What capturing costs beside the control step: `python -m tests.benchmarks.bench_capture [--widths] [--json]`.

Paired and interleaved: in every round each variant takes the same step once, in turn, and once more in the opposite
order, so that a machine that slows down evenly favours none; the mean of the two is compared with that of the
unobserved steps. Shown are the median of the differences and its 95 % interval (by order statistics), in wall time and
in processor time; the latter is what a shared machine disturbs least. `inside` is no difference of steps: it is the
stage `observe` of the captured steps, all that ran there in the capture's own code (not making it, and not what it does
to memory), as a share of the rest of the same step. It tells one percent where steps scatter by ten.

Variants: the default capture alone; the same with the observables read in the loop (otherwise a small policy leaves
their arithmetic to whoever reads them); with the recorder and its writer's thread, which does; and eager attention that
forms every map, as hooking `output_attentions` does. Targets: capture alone at most 1 % or 1 ms, with the writer at
most 5 %; at the release's widths (`--widths`: one layer, capture alone) at most 2 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recorders import Recorder
from recorders.sim import Environment
from tracekit.bench.model import _observation, _random_policy, preset_config
from tracekit.capture import CaptureSpec
from tracekit.config import Configuration, ExecutionConfig, ReuseConfig
from tracekit.engine import Controller, StepOptions, StepResult
from tracekit.observation import Observation
from tracekit.policy import Policy, Precision, load_policy
from tracekit.profiling import STAGES

CAPTURE = StepOptions(CaptureSpec.default(), "rows")


@contextmanager
def eager_maps(policy: Policy) -> Iterator[None]:
    """Within the block every attention forms its matrix and keeps it, in place of the fused kernel."""
    from tracekit.model import backbone

    fused, kept = backbone.functional.scaled_dot_product_attention, []

    def eager(
        query: Any, key: Any, value: Any, attn_mask: Any = None, is_causal: bool = False, enable_gqa: bool = False
    ) -> Any:
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if is_causal:
            attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
        weights = (logits if attn_mask is None else logits.masked_fill(~attn_mask, -torch.inf)).softmax(-1)
        kept.append(weights.float().numpy().copy())
        return weights @ value

    backbone.functional.scaled_dot_product_attention = eager  # type: ignore[assignment]
    try:
        yield
    finally:
        backbone.functional.scaled_dot_product_attention = fused


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Median and the order statistics that enclose it with 95 % confidence."""
    ordered = np.sort(differences)
    half = 0.98 * len(ordered) ** 0.5
    low, high = (
        int(max(0, np.floor(len(ordered) / 2 - half))),
        int(min(len(ordered) - 1, np.ceil(len(ordered) / 2 + half))),
    )
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])


def variants(
    policy: Policy, observation: Observation, config: Configuration, folder: Path | None, stack: ExitStack
) -> dict[str, Callable[[], Any]]:
    def stepper(options: StepOptions | None) -> Callable[[], Any]:
        controller = Controller(policy, config, options)

        def step() -> StepResult:
            controller.reset(1)
            return controller.step(observation)

        return step

    plain, captured = stepper(None), stepper(CAPTURE)
    if folder is None:
        return {"unobserved": plain, "default capture": captured}
    recorded = Controller(policy, config)
    recorder = stack.enter_context(Recorder(folder / "trace.zarr", recorded))
    episode = stack.enter_context(recorder.episode("bench", observation.instruction))

    def record() -> None:
        with episode.step(observation) as step:
            step.action = recorded.act(observation)

    reading = Controller(policy, config, CAPTURE)

    def read() -> None:
        reading.reset(1)
        result = reading.step(observation)
        _ = result.observables, result.encoded[0].rows_digest

    def eager() -> None:
        with eager_maps(policy):
            plain()

    return {
        "unobserved": plain,
        "default capture": captured,
        "capture, read in the loop": read,
        "capture and writer": record,
        "eager maps": eager,
    }


def measure(
    policy: Policy, observation: Observation, config: Configuration, rounds: int, *, alone: bool
) -> dict[str, Any]:
    times: dict[str, list[npt.NDArray[np.float64]]] = {}
    inside: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        calls = variants(policy, observation, config, None if alone else Path(folder), stack)
        for call in calls.values():
            call()
        names = list(calls)
        for index in range(rounds):
            order = names[index % len(names) :] + names[: index % len(names)]
            spent = {name: np.zeros(2) for name in names}
            for name in (*order, *reversed(order)):
                wall, processor = time.perf_counter(), time.process_time()
                result = calls[name]()
                spent[name] += time.perf_counter() - wall, time.process_time() - processor
                if name == "default capture":
                    observed = float(result.times_ns[STAGES.index("observe")].sum())
                    inside.append((observed / 1e6, 100 * observed / (result.wall_ns - observed)))
            for name in names:
                times.setdefault(name, []).append(spent[name] / 2)
    base = np.array(times["unobserved"]) * 1e3
    found: dict[str, Any] = {
        "unobserved_ms": {"wall": float(np.median(base[:, 0])), "cpu": float(np.median(base[:, 1]))}
    }
    for name in names[1:]:
        extra = np.array(times[name]) * 1e3 - base
        found[name] = {}
        for column, clock in enumerate(("wall", "cpu")):
            middle, low, high = interval(extra[:, column])
            reference = float(np.median(base[:, column]))
            found[name][clock] = {
                "extra_ms": round(middle, 3),
                "interval_ms": [round(low, 3), round(high, 3)],
                "percent": round(100 * middle / reference, 2),
                "percent_interval": [round(100 * low / reference, 2), round(100 * high / reference, 2)],
            }
    (own_ms, low_ms, high_ms), (share, low, high) = (interval(np.array(inside)[:, column]) for column in (0, 1))
    found["default capture"]["inside"] = {
        "extra_ms": round(own_ms, 3),
        "interval_ms": [round(low_ms, 3), round(high_ms, 3)],
        "percent": round(share, 2),
        "percent_interval": [round(low, 2), round(high, 2)],
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", action="store_true", help="one layer at the release's widths, bfloat16")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    dtype = "bfloat16" if options.widths else "float32"
    config = Configuration(
        reuse=ReuseConfig("prefix_kv", "pinned"),
        execution=ExecutionConfig(dtype=dtype, threads=options.threads),  # type: ignore[arg-type]
    )
    if options.widths:
        with torch.inference_mode():
            policy: Policy = _random_policy(preset_config("mla-1layer"), Precision(dtype=dtype))
        observation = _observation(policy)
    else:
        policy, observation = load_policy("reference"), Environment("close_box").reset(7)
    found = measure(policy, observation, config, options.rounds, alone=options.widths)
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for name, figures in found.items():
        sys.stdout.write(f"{name}\n" + "".join(f"  {clock} {values}\n" for clock, values in figures.items()))


if __name__ == "__main__":
    main()
