"""The ranks of factors for backends that compile for them."""

from __future__ import annotations

from sdexport.runtime.adapters.lora_inputs import LayerShape, rank_multiple
from sdexport.runtime.adapters.lora_ranks import LargestRanks, group_of, largest, rounded


def layer(name: str, *kernel: int) -> LayerShape:
    return LayerShape(name, 4, 4, kernel)


def test_groups_of_layers() -> None:
    for name in (
        "down_blocks.0.attentions.1.attn1.to_q",
        "encoder.layers.0.fc1",
    ):
        assert group_of(layer(name)) == "attention"
    assert group_of(layer("mid_block.attentions.0.proj_in", 1, 1)) == "attention"
    for name in (
        "time_embedding.linear_1",
        "up_blocks.0.resnets.0.time_emb_proj",
        "add_embedding.x",
    ):
        assert group_of(layer(name)) == "outer"
    assert group_of(layer("up_blocks.0.resnets.0.conv_shortcut", 1, 1)) == "outer"
    assert group_of(layer("up_blocks.0.resnets.0.conv1", 3, 3)) == "kernel"
    needed = {layer("attentions.a"): 3, layer("attentions.b"): 5, layer("conv_in", 3, 3): 0}
    assert largest(needed) == {"attention": 5, "kernel": 0}
    assert rounded({"attention": 17, "kernel": 0}) == {"attention": 32, "kernel": 0}


def test_ranks_only_grow() -> None:
    ranks = LargestRanks()
    assert ranks.grown("unet", {"a": 4, "k": 0}) == ({"a": 16, "k": 0}, True)
    assert ranks.grown("unet", {"a": 16, "k": 0}) == ({"a": 16, "k": 0}, False)
    assert ranks.grown("text_encoder", {"a": 17}) == ({"a": 32}, True)
    assert ranks.grown("unet", {"a": 1, "k": 1}) == ({"a": 16, "k": 16}, True)
    for rank, expected in ((33, 64), (64, 64), (65, 128), (128, 128), (129, 256), (1, 256)):
        assert ranks.grown("unet", {"a": rank, "k": 0})[0] == {"a": expected, "k": 16}


def test_dimensions_that_count_ranks() -> None:
    assert rank_multiple("a.b.rank") == 1 and rank_multiple("a.b.rank_3x3") == 9
    for name in ("batch", "lora_rows", "rank", "a.ranks"):
        assert rank_multiple(name) is None
