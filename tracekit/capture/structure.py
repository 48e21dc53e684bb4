"""Finding what can be hooked: the attention modules and the final norm of a LLaMA-shaped decoder, by structure."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from tracekit.errors import PolicyError

__all__ = ["attention_modules", "attribute", "blocks_of", "final_norm", "refuse_compiled", "vocabulary_head"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_PROJECTIONS = frozenset(PROJECTIONS)


def attention_modules(backbone: nn.Module) -> list[nn.Module]:
    """Modules with separate q_proj, k_proj and v_proj below `backbone`, first layer first.

    Raises PolicyError (one line) where rows rebuilt from the projections would not be those of the forward pass: no
    such module, norms between projection and RoPE, flex attention, sliding windows, or a compiled module.
    """
    found = _still_there(backbone) or _walk(backbone)
    for module in found:
        _refuse_unobservable(backbone, module)
    return found


Links = list[tuple[dict[str, nn.Module | None], int, str, nn.Module]]
_WALKED: WeakKeyDictionary[nn.Module, tuple[Links, list[nn.Module]]] = WeakKeyDictionary()
"""Backbone -> links (a parent's children, how many, name, child) down to every attention, and the attention modules.

A tap is made at every control step, and the walk is what making one costs."""


def _still_there(backbone: nn.Module) -> list[nn.Module] | None:
    """What the last walk found, if every module on the way is the same one and none has been compiled since."""
    if backbone not in _WALKED or _is_compiled(backbone):
        return None
    links, found = _WALKED[backbone]
    for children, count, name, module in links:
        if len(children) != count or children.get(name) is not module or _is_compiled(module):
            return None
    return list(found)


def _walk(backbone: nn.Module) -> list[nn.Module]:
    modules = list(backbone.modules())
    if any(_is_compiled(module) for module in modules):
        refuse_compiled(backbone)
    children = ((module, vars(module)["_modules"]) for module in modules)
    found = [
        module
        for module, own in children
        if own.keys() >= _PROJECTIONS and all(own[name] is not None for name in PROJECTIONS)
    ]
    if not found:
        raise PolicyError(
            f"{type(backbone).__name__} has no attention with separate {', '.join(PROJECTIONS)}; only LLaMA-shaped "
            "attention can be observed: give the path of such a decoder"
        )
    sought = {id(module) for module in found}
    links: Links = []
    for path, module in backbone.named_modules():
        if id(module) in sought:
            parent = backbone
            for name in path.split(".") if path else ():
                child = parent.get_submodule(name)
                own = vars(parent)["_modules"]
                links.append((own, len(own), name, child))
                parent = child
    _WALKED[backbone] = links, found
    return list(found)


def _refuse_unobservable(backbone: nn.Module, module: nn.Module) -> None:
    where = f"{type(backbone).__name__}: attention {type(module).__name__}"
    if attribute(module, "q_norm") is not None or attribute(module, "k_norm") is not None:
        raise PolicyError(f"{where} normalises queries or keys after projecting them; it cannot be observed")
    if _implementation(module) == "flex_attention":
        raise PolicyError(
            f'{where} runs flex attention, whose masks cannot be read; load the model with attn_implementation="sdpa"'
        )
    if attribute(module, "sliding_window") is not None:
        raise PolicyError(f"{where} has a sliding window; only plain causal attention can be observed")


def blocks_of(backbone: nn.Module, attentions: list[nn.Module]) -> list[nn.Module]:
    """The decoder block around each of the `attentions`; raises PolicyError where a block has no `mlp`."""
    paths = {id(module): path for path, module in backbone.named_modules()}
    blocks: list[nn.Module] = [backbone.get_submodule(paths[id(module)].rpartition(".")[0]) for module in attentions]
    if not all(isinstance(getattr(block, "mlp", None), nn.Module) for block in blocks):
        raise PolicyError(
            f"{type(backbone).__name__}: the blocks around the attention have no `mlp`; hidden states can only be "
            "taken from LLaMA-shaped blocks: leave `hidden` out of the capture"
        )
    return blocks


def vocabulary_head(policy: object) -> nn.Module:
    """The module called `lm_head` somewhere in `policy`; raises PolicyError if there is none."""
    modules = policy.named_modules() if isinstance(policy, nn.Module) else ()
    found: nn.Module
    for path, found in modules:
        if path.rpartition(".")[2] == "lm_head":
            return found
    raise PolicyError(
        f"{type(policy).__name__} has no module called lm_head, so norms of logits cannot be taken; leave `logits` out "
        "of the capture, or choose another pruner.reduction.feature"
    )


def final_norm(backbone: nn.Module) -> nn.Module:
    """The norm after the last block; raises PolicyError if there is none called `norm`."""
    norm = getattr(backbone, "norm", None)
    if not isinstance(norm, nn.Module):
        raise PolicyError(
            f"{type(backbone).__name__} has no final `norm`; feature norms are read at its input and output: give the "
            "path of the decoder that has it"
        )
    return norm


def refuse_compiled(root: nn.Module, path: str = "") -> None:
    """Raise PolicyError if `root`, which lies at `path`, or a module below it is compiled: hooks would not run."""
    for name, module in root.named_modules(prefix=path):
        if _is_compiled(module):
            raise PolicyError(
                f"{name or type(root).__name__} is compiled by torch.compile, which does not run hooks; pass the model "
                "before compiling it"
            )


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in vars(module)["_modules"] or getattr(module, "_compiled_call_impl", None) is not None


def _implementation(module: nn.Module) -> str | None:
    found: str | None = getattr(attribute(module, "config"), "_attn_implementation", None)
    return found


def attribute(module: nn.Module, name: str) -> Any:
    """The attribute or child `name`, None if there is none: to find nothing takes a module's own access far longer."""
    own = vars(module)
    found: Any = own[name] if name in own else own["_modules"].get(name)
    return getattr(type(module), name, None) if found is None else found
