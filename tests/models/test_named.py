"""The models in conf/model: built from their YAML, without weights, they have the size that was published."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from sweeptune.config.check import groups
from sweeptune.config.compose import compose
from sweeptune.models import load_config

PARAMETERS = {
    "tiny": 106_816,
    "smollm2_135m": 134_515_008,
    "smollm2_135m_q4": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "smollm3_3b": 3_075_098_624,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    **{f"internlm2_{version}1_8b": 1_889_110_016 for version in ("", "chat_", "5_", "5_chat_")},
    **{f"internlm2_{version}7b": 7_737_708_544 for version in ("", "chat_", "5_", "5_chat_")},
    **{f"internlm2_{version}20b": 19_861_149_696 for version in ("", "chat_", "5_", "5_chat_")},
}


def test_every_model_is_listed():
    assert set(groups()["model"]) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_random_weights_have_the_published_number_of_parameters(name):
    model = compose([f"model={name}", "model.weights=random"]).model
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(load_config(model))
    assert sum(parameter.numel() for parameter in built.parameters()) == PARAMETERS[name]


def test_the_published_names_are_those_of_the_hub():
    paths = {name: compose([f"model={name}"]).model.path for name in PARAMETERS if name.startswith("internlm2")}
    assert paths["internlm2_1_8b"] == "internlm/internlm2-1_8b"
    assert paths["internlm2_chat_20b"] == "internlm/internlm2-chat-20b"
    assert paths["internlm2_5_7b"] == "internlm/internlm2_5-7b"
    assert paths["internlm2_5_chat_1_8b"] == "internlm/internlm2_5-1_8b-chat"
    assert len(set(paths.values())) == len(paths) == 12
