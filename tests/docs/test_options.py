"""docs/pruners.md has every option of every pruner that ships, with its default."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest

from tracekit.config import load_config, preset_names
from tracekit.pruning import PRUNERS, Reduction

PAGE = (Path(__file__).parents[2] / "docs" / "pruners.md").read_text("utf-8")
ALL = ("none", "naive", "tri_stage", "sp_vla", "fastv", "vla_pruner")


def rows():
    """Option -> the defaults that its rows give, in the words of TOML."""
    found = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        for names, defaults in itertools.pairwise(cells):
            options = re.findall(r"`([a-z0-9_]+)`", names)
            if options and re.fullmatch(r"(`[a-z0-9_]+`(, )?)+", names):
                values = re.split(r", (?![^\[]*\])", defaults)
                for option, value in zip(options, values, strict=False):
                    found.setdefault(option, set()).add(value.strip("`"))
    return found


@pytest.mark.parametrize("config", [*(PRUNERS[kind].config for kind in ALL), Reduction])
def test_every_option_is_there_with_its_default(config):
    table = rows()
    for field in dataclasses.fields(config):
        if field.name in {"reduction", "action_layer"}:  # a table of its own; a default that depends on the policy
            assert f"`{field.name}`" in PAGE or f"[pruner.{field.name}]" in PAGE
            continue
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        written = [json.loads(value) for value in table.get(field.name, ()) if _is_toml(value)]
        assert default in written, f"{config.__name__}.{field.name}: {default!r} is not on the page ({written})"


def _is_toml(value):
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


def test_every_preset_is_named_with_its_pruner():
    for name in preset_names():
        kind = load_config(name).kind
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |"))
        assert f"`{name}`" in row, name
