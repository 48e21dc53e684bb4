"""Whether a configuration fits a policy, and how its rows are dropped; refused with the reason where it does not."""

from __future__ import annotations

import inspect

from tracekit.capture import attention_modules
from tracekit.config import Configuration
from tracekit.engine.forward import Dropping
from tracekit.errors import ConfigError
from tracekit.policy import Policy

__all__ = ["dropping_of"]


def dropping_of(policy: Policy, config: Configuration) -> Dropping:
    """How a control step of `policy` drops rows under `config`; raises ConfigError where it cannot."""
    observes, masked = config.method.observes, config.execution.drop == "mask"
    if observes == "embeddings":
        raise ConfigError(
            f"pruner {config.kind!r} decides from embeddings, which no forward replay supports yet; its decisions can "
            "be taken from the package's API"
        )
    if observes == "forward" and config.observe.mode == "current" and policy.passes < 2:
        raise ConfigError(
            f'observe.mode = "current" needs at least 2 denoise passes and this policy has {policy.passes}: '
            'pass 0 is the one observed, unpruned; use observe.mode = "lagged"'
        )
    if masked:
        _refuse_without(policy, "visible", 'execution.drop = "mask"')
    if observes != "in_network":
        return Dropping(masked=masked, cut_cache=config.reuse.kv == "drop")
    if config.method.behind is None:
        raise ConfigError(f"pruner {config.kind!r} decides inside the network and does not say behind which block")
    behind, layers = config.method.behind(config.pruner), len(attention_modules(policy.backbone))
    if not 0 <= behind < layers - 1:
        raise ConfigError(
            f"pruner {config.kind!r} drops tokens behind block {behind} (counted from 0), and policy "
            f"{policy.identity.name!r} has {layers}; set pruner.layer to at most {layers - 2}"
        )
    _refuse_without(policy, "blocks", f"pruner {config.kind!r}")
    return Dropping(behind=behind, masked=masked, layers=layers)


def _refuse_without(policy: Policy, keyword: str, what: str) -> None:
    parameters = inspect.signature(policy.forward).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if keyword not in parameters and not takes_any:
        raise ConfigError(
            f"{what} needs a policy whose forward takes {keyword}=, and {type(policy).__name__}'s does not; "
            "see tracekit.policy.Policy.forward"
        )
