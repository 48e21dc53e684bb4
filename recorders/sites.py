"""Where a policy's parts are: found by structure below the object that predicts, or given as dotted paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from tracekit.capture import attention_modules, final_norm, refuse_compiled
from tracekit.errors import PolicyError

__all__ = ["Sites", "find_sites", "resolve"]

PARTS = {
    "image": "projector_2d",
    "point": "projector_3d",
    "centres": "vision_tower_3d",
    "proprio": "proprio_embedder",
    "timestep": "t_embedder",
    "action": "x_embedder",
    "head": "final_layer",
}
"""Site -> the name that the release gives the module; it may lie anywhere below the policy."""

OPTIONAL = frozenset({"point", "centres", "proprio", "timestep"})


@dataclass(frozen=True, slots=True)
class Sites:
    """Dotted paths from the policy object.

    Methods: `predict`, the call of one control step; `forward`, called once per denoise pass with the noisy action `x`
    and the timestep `t`; `fuse`, which returns the visual rows (first of a tuple, beside the correspondence), None
    where there is none. Modules: `backbone`, the LLaMA-shaped decoder with its final `norm` and `embed_tokens`; `image`
    and `point`, whose outputs are the visual rows, `image` being called once per view, front first; `centres`, whose
    second output is the point centres; `fps`, one per sampling stage, the fifth of whose outputs is the chosen indices,
    start first; the embedders `proprio`, `timestep` and `action`; `head`, hidden states to predicted noise.
    """

    backbone: str
    image: str
    action: str
    head: str
    forward: str
    fuse: str | None = None
    point: str | None = None
    centres: str | None = None
    proprio: str | None = None
    timestep: str | None = None
    fps: tuple[str, ...] = ()
    predict: str = "predict_action_diff"


def find_sites(policy: object, given: Mapping[str, Any] | None = None) -> Sites:
    """The sites of `policy`: those `given` (site -> path), the others by structure.

    The backbone is the decoder of LLaMA shape; the parts carry the release's names, wherever they lie; `forward` and
    `fuse` belong to the module that owns the action embedder. Raises PolicyError (one line) for a site that is not
    there, is there twice, or cannot be hooked.
    """
    given = dict(given or {})
    known = {item.name for item in fields(Sites)}
    for name in given:
        if name not in known:
            raise PolicyError(f"no site {name!r}; sites are: {', '.join(sorted(known))}")
    modules = dict(_modules(policy))
    if not modules:
        raise PolicyError(f"{type(policy).__name__} holds no torch module; pass the object that predicts actions")
    for path, module in modules.items():
        if "." not in path:
            refuse_compiled(module, path)
    if isinstance(policy, nn.Module):
        refuse_compiled(policy)
    found: dict[str, Any] = {"backbone": given.get("backbone") or _backbone(modules)}
    for site, name in PARTS.items():
        found[site] = given[site] if site in given else _named(modules, site, name)
    owner, _, _ = str(found["action"]).rpartition(".")
    found["forward"] = f"{owner}.forward" if owner else "forward"
    fuse = f"{owner}.get_fused_tokens" if owner else "get_fused_tokens"
    found["fuse"] = fuse if callable(_reach(policy, fuse)) else None
    found["fps"] = _samplers(modules, found["centres"])
    sites = replace(Sites(**found), **given)
    _check(policy, sites)
    return sites


def resolve(policy: object, path: str) -> Any:
    """What `path` leads to from `policy`; raises PolicyError naming the part of it that is not there."""
    current: Any = policy
    for index, name in enumerate(path.split(".")):
        following = _reach(current, name)
        if following is None:
            before = ".".join(path.split(".")[:index]) or type(policy).__name__
            raise PolicyError(f"site path {path!r}: {before} has no {name!r}; correct the path")
        current = following
    return current


def _modules(policy: object) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of everything below `policy`, which may be a module or an object that holds modules."""
    if isinstance(policy, nn.Module):
        yield from ((path, module) for path, module in policy.named_modules() if path)
        return
    for name, value in vars(policy).items() if hasattr(policy, "__dict__") else ():
        if isinstance(value, nn.Module):
            yield name, value
            yield from ((f"{name}.{path}", module) for path, module in value.named_modules() if path)


def _reach(start: object, path: str) -> Any:
    current: Any = start
    for name in path.split("."):
        indexed = isinstance(current, nn.ModuleList | nn.Sequential) and name.isdigit() and int(name) < len(current)
        current = current[int(name)] if indexed else getattr(current, name, None)
    return current


def _backbone(modules: Mapping[str, nn.Module]) -> str:
    """Path of the decoder: attention with q_proj, k_proj, v_proj below it, `norm` and `embed_tokens` of its own."""
    heads = ("q_proj", "k_proj", "v_proj")
    shaped = [
        path
        for path, module in modules.items()
        if isinstance(getattr(module, "norm", None), nn.Module)
        and isinstance(getattr(module, "embed_tokens", None), nn.Module)
        and any(all(hasattr(below, name) for name in heads) for below in module.modules())
    ]
    if len(shaped) != 1:
        what = f"several LLaMA-shaped decoders: {', '.join(shaped)}" if shaped else "no LLaMA-shaped decoder"
        raise PolicyError(
            f"the policy has {what} (`norm`, `embed_tokens`, attention with separate q_proj, k_proj, v_proj); give the "
            "path as backbone="
        )
    return shaped[0]


def _named(modules: Mapping[str, nn.Module], site: str, name: str) -> str | None:
    found = [path for path in modules if path.rsplit(".", 1)[-1] == name]
    if len(found) > 1:
        raise PolicyError(f"the policy has several modules {name!r}: {', '.join(found)}; give the path as {site}=")
    if not found and site not in OPTIONAL:
        raise PolicyError(f"the policy has no module {name!r}; give the path of the part that does its work as {site}=")
    return found[0] if found else None


def _samplers(modules: Mapping[str, nn.Module], centres: str | None) -> tuple[str, ...]:
    """Paths of the farthest-point-sampling modules below `centres`, in order: their class is named after FPS."""
    if centres is None:
        return ()
    return tuple(
        path
        for path, module in modules.items()
        if path.startswith(f"{centres}.") and re.search("fps", type(module).__name__, re.IGNORECASE)
    )


def _check(policy: object, sites: Sites) -> None:
    for site in ("backbone", *PARTS):
        path = getattr(sites, site)
        if path is not None and not isinstance(resolve(policy, path), nn.Module):
            raise PolicyError(f"site {site} = {path!r} is no torch module; give the path of one")
    for path in sites.fps:
        resolve(policy, path)
    for site in ("predict", "forward", "fuse"):
        path = getattr(sites, site)
        if path is not None and not callable(resolve(policy, path)):
            raise PolicyError(f"site {site} = {path!r} cannot be called; give the path of a method")
    backbone = resolve(policy, sites.backbone)
    attention_modules(backbone)
    final_norm(backbone)
    if not isinstance(getattr(backbone, "embed_tokens", None), nn.Module):
        raise PolicyError(f"site backbone = {sites.backbone!r} has no `embed_tokens`; give the path of the decoder")
