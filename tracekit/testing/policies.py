"""What every policy must hold to so that it can be recorded, pruned and replayed: `tracekit.policy.Policy`, checked."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tracekit.capture import CaptureSpec, attention_modules, final_norm
from tracekit.config import Configuration, ReuseConfig
from tracekit.engine import Controller, StepOptions, StepResult, draw
from tracekit.layout import TokenLayout
from tracekit.observation import Observation
from tracekit.policy import Policy, Prefix

__all__ = ["check_policy"]

UID = 3
CLOSE = 2e-2
"""Of the largest number: half precision rounds to less, and what is computed otherwise differs by more."""


def check_policy(policy: Policy, observations: Sequence[Observation]) -> None:
    """Run `policy` on `observations` (two or more, different) and raise AssertionError, saying what is wrong, if it
    does not keep the protocol.

    Every part has the documented shape and type. What a call returns is not written to later, by the policy or by a
    later call: not the rows, and not the projections inside the backbone, of which observing keeps references (the
    buffers of a cache may be used again once `new_cache` is asked for another). Over a cache, whole, with rows
    forgotten and with rows selected, the tail is what it is in the whole sequence. Control steps, with every pass
    computed anew and over a kept prefix, repeat to the bit, whatever ran before and whatever the global random
    generators hold, draw nothing from those, and are the same while observed; what was observed is the same, read at
    once or after later steps.
    """  # noqa: D205  # one sentence
    missing = [name for name in _PARTS if not hasattr(policy, name)]
    _require(not missing, f"the policy has no {', '.join(missing)}; see tracekit.policy.Policy")
    _require(len(observations) >= 2, "give at least two observations: some faults show in the second step only")
    with torch.inference_mode():
        for observation in observations:
            _check_calls(policy, observation)
        _check_kept(policy, observations)
        _check_projections(policy, observations[0])
        for observation in observations[:2]:
            _check_cache(policy, observation)
    for reuse in (ReuseConfig(), ReuseConfig("prefix_kv", "pinned")):
        _check_steps(policy, observations, Configuration(reuse=reuse), f"reuse = {reuse.kind}")


_PARTS = tuple(sorted(name for name in vars(Policy) if not name.startswith("_")))


def _sequence(policy: Policy, observation: Observation, number: int = 1) -> tuple[TokenLayout, Prefix, Tensor, Tensor]:
    """Layout, prefix and tail (n, D) of pass 0 of step `number`, and the noisy action (T, A) the tail was made of."""
    tokens = policy.tokenize(observation)
    draws = draw(policy, tokens, UID, number)
    sample = torch.from_numpy(draws.noise.copy())
    starts = tuple(int(start) for start in draws.fps_starts[0])
    return tokens.layout, policy.embed_prefix(tokens, starts), policy.embed_tail(sample, 0), sample


def _calls(policy: Policy, observation: Observation, number: int = 1) -> dict[str, Tensor]:
    """Call -> what it returned."""
    layout, prefix, tail, sample = _sequence(policy, observation, number)
    action = layout.span("action")
    hidden = policy.forward(torch.cat([prefix.rows, tail]), torch.arange(layout.length))
    noise = policy.read_noise(hidden[action.start : action.stop])
    after = policy.advance(sample, noise, 0)
    found = {
        "embed_prefix": prefix.rows,
        "embed_tail": tail,
        "forward": hidden,
        "read_noise": noise,
        "advance": after,
        "read_out": policy.read_out(after),
    }
    if prefix.centres is not None:
        found["embed_prefix: centres"] = prefix.centres
    if prefix.alignment is not None:
        found["embed_prefix: alignment"] = torch.from_numpy(prefix.alignment.patch)
    return found


def _check_calls(policy: Policy, observation: Observation) -> None:
    layout, prefix, tail, _ = _sequence(policy, observation)
    width, chunk = tail.shape[-1], tuple(policy.action_shape)
    points = len(layout.point_positions)
    expected = {
        "embed_prefix": (layout.prefix_length, width),
        "embed_tail": (layout.length - layout.prefix_length, width),
        "forward": (layout.length, width),
        "read_noise": chunk,
        "advance": chunk,
        "read_out": chunk,
    }
    if points:
        _require(prefix.alignment is not None, "embed_prefix: a policy with point tokens gives their alignment")
        expected |= {"embed_prefix: centres": (points, 3), "embed_prefix: alignment": (points,)}
    found = _calls(policy, observation)
    for name, shape in expected.items():
        there = tuple(found[name].shape) if name in found else None
        _require(there == shape, f"{name} gives {there}, the layout and action_shape say {shape}")
        _require(bool(torch.isfinite(found[name]).all()), f"{name} gives numbers that are not finite")
    _require(found["read_out"].dtype == torch.float64, f"read_out gives {found['read_out'].dtype}, not float64")
    size = policy.action_spec.size
    _require(chunk[1] == size, f"action_shape is {chunk}, but actions of action_spec have {size} numbers")


def _check_kept(policy: Policy, observations: Sequence[Observation]) -> None:
    first = _calls(policy, observations[0])
    before = {name: values.clone() for name, values in first.items()}
    for number, observation in enumerate(observations[1:], 2):
        _calls(policy, observation, number)
    for name, values in first.items():
        _require(
            torch.equal(values, before[name]),
            f"{name.partition(':')[0]} wrote into what it had returned before; return new tensors at every call",
        )


def _check_projections(policy: Policy, observation: Observation) -> None:
    """What a capture keeps references of stays as it came out."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooked: dict[str, nn.Module] = {"norm": final_norm(policy.backbone)}
    for index, module in enumerate(attention_modules(policy.backbone)):
        hooked |= {f"{name} of layer {index}": getattr(module, name) for name in ("q_proj", "k_proj")}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output, output.clone()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in hooked.items()]
    try:
        _calls(policy, observation)
    finally:
        for handle in handles:
            handle.remove()
    for name in hooked:
        _require(name in seen, f"{name} of the backbone did not run in forward; `backbone` must be what forward runs")
        _require(
            torch.equal(*seen[name]),
            f"the output of {name} was written to after it came out; observing keeps references: compute into a new "
            "tensor",
        )


def _check_cache(policy: Policy, observation: Observation) -> None:
    layout, prefix, tail, _ = _sequence(policy, observation)
    held, length = layout.prefix_length, layout.length
    whole = policy.forward(torch.cat([prefix.rows, tail]), torch.arange(length))[held:]
    positions = torch.arange(held, length)
    cache = policy.new_cache(length + 2 * len(tail))  # so that a tail that stays is told from a lack of room
    policy.forward(prefix.rows, torch.arange(held), cache)
    over = policy.forward(tail, positions, cache).clone()
    _require(_near(over, whole), "over a cache of the prefix, the tail is not what it is in the whole sequence")
    cache.forget(len(tail))
    again = policy.forward(tail, positions, cache)
    _require(torch.equal(over, again), "after cache.forget, the same tail gives other numbers")
    for kept, expected in _selections(policy, prefix.rows, tail, positions):
        cache = policy.new_cache(length)
        policy.forward(prefix.rows, torch.arange(held), cache)
        cache.select(kept)
        _require(
            _near(policy.forward(tail, positions, cache), expected),
            "after cache.select, the tail is not what it is where it sees the selected rows alone",
        )


def _selections(policy: Policy, rows: Tensor, tail: Tensor, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the prefix to select, and the tail over them: rows that see no others, and, with a mask, every second."""
    held = len(rows)
    first = torch.arange(held // 2)
    sequence = torch.cat([rows[: held // 2], tail])
    yield first, policy.forward(sequence, torch.cat([first, positions]))[held // 2 :].clone()
    if "visible" in inspect.signature(policy.forward).parameters:
        visible = torch.ones(held + len(tail), held + len(tail), dtype=torch.bool).tril()
        visible[held:, 1:held:2] = False
        whole = policy.forward(torch.cat([rows, tail]), torch.arange(held + len(tail)), visible=visible)
        yield torch.arange(0, held, 2), whole[held:].clone()


def _check_steps(policy: Policy, observations: Sequence[Observation], config: Configuration, where: str) -> None:
    before = _generators()
    alone = [_first_steps(policy, [observation], config)[0] for observation in observations]
    _require(
        before == _generators(),
        f"{where}: a control step drew from a global random generator; draws come from the engine",
    )
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # a policy must not notice
    _compare(where, "after other steps", alone, _first_steps(policy, observations[::-1], config)[::-1])
    capture = StepOptions(CaptureSpec.default(), "rows")
    read: list[Mapping[str, bytes]] = []
    for index, observation in enumerate(observations):
        observed = _first_steps(policy, [observation], config, capture)
        _compare(where, "while observed", alone[index : index + 1], observed)
        read.append(_captured(observed[0]))
    for at_once, later in zip(read, _first_steps(policy, observations, config, capture), strict=True):
        for name, values in _captured(later).items():
            _require(
                values == at_once[name],
                f"{where}: {name} of a step is other when it is read after later steps; what it is taken of was "
                "written to",
            )


def _first_steps(
    policy: Policy, observations: Sequence[Observation], config: Configuration, options: StepOptions | None = None
) -> list[StepResult]:
    """A control step on each, one after the other, each with the random draws of an episode's first."""
    controller = Controller(policy, config, options)
    found = []
    for observation in observations:
        controller.reset(UID)
        found.append(controller.step(observation))
    return found


def _compare(where: str, how: str, steps: Sequence[StepResult], others: Sequence[StepResult]) -> None:
    for one, other in zip(steps, others, strict=True):
        same = one.samples.tobytes() == other.samples.tobytes() and one.action.tobytes() == other.action.tobytes()
        _require(same, f"{where}: a control step gives another action {how}; it may depend on its inputs alone")


def _captured(result: StepResult) -> Mapping[str, bytes]:
    seen = result.observables
    if seen is None:
        return {}
    parts: dict[str, npt.NDArray[Any] | None] = {
        "attention": seen.attention,
        "last_row": seen.last_row,
        "qk_text_layer0": seen.qk_text_layer0,
        "action_rows": result.action_rows,
        "prefix rows": result.encoded[0].rows,
        **{f"norms of {name}": values for name, values in seen.norms.items()},
    }
    return {name: values.tobytes() for name, values in parts.items() if values is not None}


def _generators() -> tuple[Any, ...]:
    """The states of the generators that a policy must neither read nor advance."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002  # the global generator is what is watched
    return torch.get_rng_state().tolist(), state["state"]["key"].tolist(), state["state"]["pos"], random.getstate()


def _near(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= CLOSE * float(other.abs().max())


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
