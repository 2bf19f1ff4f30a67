"""Modes are sets of switches; each switch can be turned alone, and what makes no sense is refused by name."""

import dataclasses

import pytest

from drafthouse.core.errors import ClientError, ErrorCode
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.modes import MODES, Mode, Overlap, Switches, Trees
from fakes.pipeline_fusion import DRAFTERS

EXPECTED = {
    "cosine": Switches(drafts=True, all_drafters=True, routing=True, trees=Trees.FUSED, overlap=Overlap.AUTO, adaptation=True, tetris=True),
    "vanilla": Switches(
        drafts=True, all_drafters=False, routing=False, trees=Trees.CHAIN, overlap=Overlap.OFF, adaptation=False, tetris=False
    ),
    "specinfer": Switches(
        drafts=True, all_drafters=True, routing=False, trees=Trees.MERGED, overlap=Overlap.OFF, adaptation=False, tetris=False
    ),
    "pipeline_only": Switches(
        drafts=True, all_drafters=False, routing=False, trees=Trees.CHAIN, overlap=Overlap.ON, adaptation=False, tetris=False
    ),
    "target_only": Switches(
        drafts=False, all_drafters=False, routing=False, trees=Trees.CHAIN, overlap=Overlap.OFF, adaptation=False, tetris=False
    ),
}


def test_every_mode_has_its_switches() -> None:
    assert {mode.value for mode in Mode} == set(EXPECTED) == {mode.value for mode in MODES}
    for name, switches in EXPECTED.items():
        assert PipelineConfig.parse({"mode": name}).switches == switches


def test_pipeline_only_is_vanilla_with_overlap() -> None:
    assert PipelineConfig(mode=Mode.VANILLA, overlap="on").switches == PipelineConfig(mode=Mode.PIPELINE_ONLY).switches


@pytest.mark.parametrize(
    ("parameter", "value", "changed"),
    [
        ("routing", "off", {"routing": False}),
        ("fusion", "off", {"trees": Trees.CHAIN}),
        ("overlap", "off", {"overlap": Overlap.OFF}),
        ("overlap", "on", {"overlap": Overlap.ON}),
        ("adaptation", "off", {"adaptation": False}),
        ("tetris", "off", {"tetris": False}),
    ],
)
def test_one_part_of_cosine_is_turned_without_touching_another(parameter: str, value: str, changed: dict[str, object]) -> None:
    expected = dataclasses.replace(MODES[Mode.COSINE], **changed)  # type: ignore[arg-type]
    assert PipelineConfig.parse({parameter: value}).switches == expected != MODES[Mode.COSINE]
    assert PipelineConfig.parse({parameter: "mode"}).switches == MODES[Mode.COSINE]


@pytest.mark.parametrize(
    ("parameter", "value", "changed"),
    [
        ("routing", "on", {"routing": True}),
        ("fusion", "on", {"trees": Trees.FUSED}),
        ("overlap", "auto", {"overlap": Overlap.AUTO}),
        ("adaptation", "on", {"adaptation": True}),
        ("tetris", "on", {"tetris": True}),
    ],
)
def test_a_part_can_be_added_to_another_mode(parameter: str, value: str, changed: dict[str, object]) -> None:
    expected = dataclasses.replace(MODES[Mode.VANILLA], **changed)  # type: ignore[arg-type]
    assert PipelineConfig.parse({"mode": "vanilla", parameter: value}).switches == expected


@pytest.mark.parametrize(
    ("parameters", "field", "named"),
    [
        ({"mode": "collaborative"}, "mode", "cosine, vanilla, specinfer, pipeline_only, target_only"),
        ({"mode": "COSINE"}, "mode", "cosine, vanilla"),
        ({"routing": "yes"}, "routing", "mode, on, off"),
        ({"fusion": "true"}, "fusion", "mode, on, off"),
        ({"overlap": "sometimes"}, "overlap", "mode, on, off, auto"),
        ({"adaptation": "auto"}, "adaptation", "mode, on, off"),
        ({"tetris": ""}, "tetris", "mode, on, off"),
        ({"num_siblings": "8"}, "num_siblings", "at most 7"),
        ({"num_siblings": "-1"}, "num_siblings", "at least 0"),
        ({"max_drafters": "0"}, "max_drafters", "at least 1"),
        ({"max_tree_nodes": "0"}, "max_tree_nodes", "at least 1"),
        ({"max_tree_nodes": "many"}, "max_tree_nodes", "an integer"),
        ({"max_num_draft_tokens": "3"}, "num_draft_tokens", "at most max_num_draft_tokens (3)"),
        ({"max_branches": "1"}, "max_branches", "a parameter among"),
    ],
)
def test_a_bad_value_is_refused_by_name(parameters: dict[str, str], field: str, named: str) -> None:
    with pytest.raises(ClientError) as caught:
        PipelineConfig.parse(parameters)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert caught.value.field == field
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "drafters"),
    [
        (Mode.COSINE, DRAFTERS),
        (Mode.SPECINFER, DRAFTERS),
        (Mode.VANILLA, ("general",)),
        (Mode.PIPELINE_ONLY, ("general",)),
        (Mode.TARGET_ONLY, ()),
    ],
)
def test_who_is_at_hand_in_each_mode(mode: Mode, drafters: tuple[str, ...]) -> None:
    assert PipelineConfig(mode=mode).usable_drafters(DRAFTERS) == drafters


def test_a_mode_does_not_look_at_drafters_that_it_does_not_use() -> None:
    assert PipelineConfig(mode=Mode.COSINE, single_drafter="tao").usable_drafters(DRAFTERS) == DRAFTERS
    assert PipelineConfig(mode=Mode.TARGET_ONLY, single_drafter="tao", collaborators="tao").usable_drafters(DRAFTERS) == ()
    assert PipelineConfig(mode=Mode.SPECINFER, collaborators="math,code").usable_drafters(DRAFTERS) == ("math", "code")
