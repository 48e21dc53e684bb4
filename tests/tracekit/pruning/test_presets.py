import dataclasses

import pytest

from tracekit.config import load_config, preset_names
from tracekit.pruning import Reduction
from tracekit.pruning.tri_stage import TriStageConfig


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_under_its_own_name(name):
    assert load_config(name).name == name


def test_there_is_a_preset_for_every_method_and_variant():
    kinds = {load_config(name).kind for name in preset_names()}
    assert kinds == {"none", "naive", "tri_stage", "fastv", "sp_vla", "vla_pruner"}
    assert load_config("vla-pruner").pruner.variant != load_config("vla-pruner-released").pruner.variant
    assert load_config("sp-vla").pruner.budget != load_config("sp-vla-velocity").pruner.budget


def test_default_is_the_defaults_and_paper_differs_in_two_rows():
    default, paper = load_config("default"), load_config("paper")
    assert default.pruner == TriStageConfig()
    assert paper.pruner == dataclasses.replace(
        default.pruner, reduction=Reduction(feature="logits", correspondence="index")
    )
    assert paper.reuse.fps == "pinned"
    assert default.digest != paper.digest
