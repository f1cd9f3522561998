"""The files in conf/: every option composes, alone and with others, and reads as a document."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
import yaml

from sweeptune.config.check import check, groups
from sweeptune.config.compose import compose, conf_dir

FILES = sorted(conf_dir().rglob("*.yaml"))
OPTIONS = {
    "model": [
        "smollm2_135m",
        "smollm2_135m_q4",
        "tiny",
        "internlm2_1_8b",
        "internlm2_chat_1_8b",
        "internlm2_7b",
        "internlm2_chat_7b",
        "internlm2_20b",
        "internlm2_chat_20b",
        "internlm2_5_1_8b",
        "internlm2_5_chat_1_8b",
        "internlm2_5_7b",
        "internlm2_5_chat_7b",
        "internlm2_5_20b",
        "internlm2_5_chat_20b",
        "qwen3_0_6b",
        "qwen3_1_7b",
        "qwen3_4b",
        "qwen3_8b",
        "llama3_2_1b",
        "llama3_2_3b",
        "smollm2_360m",
        "smollm2_1_7b",
        "smollm3_3b",
        "gemma3_270m",
        "gemma3_1b",
    ],
    "method": ["dora", "full", "lora", "lora_fp8", "lora_int8", "pissa", "qlora", "rslora"],
    "data": ["hub", "jsonl", "pydocs", "pydocs_text", "text"],
    "template": ["alpaca", "auto", "chatml", "internlm2_chat", "jinja", "llama3", "none"],
    "hardware": ["auto", "cpu", "gpu"],
    "optim": ["adamw", "adamw_8bit", "paged_adamw_8bit"],
    "tracker": ["none", "wandb", "wandb_offline"],
    "experiment": ["demo"],
    "study": ["default"],
    "space": ["none", "method_tradeoff"],
}


def test_the_groups_have_the_promised_options() -> None:
    for group, options in OPTIONS.items():
        assert set(options) <= set(groups()[group])


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in groups() for option in groups()[group]])
def test_every_option_composes_and_is_named_like_its_file(group: str, option: str) -> None:
    config = compose([f"{group}={option}"])
    if group not in ("experiment", "study"):  # named by their content
        assert getattr(config, group).name == option


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS["method"])
def test_options_combine_freely(method: str) -> None:
    # Every option with every method, the groups side by side: all products of them would take minutes.
    groups_of_three = [OPTIONS[group] for group in ("model", "data", "hardware")]
    for model, data, hardware in islice(zip(*map(cycle, groups_of_three), strict=True), max(map(len, groups_of_three))):
        config = compose([f"model={model}", f"method={method}", f"data={data}", f"hardware={hardware}"])
        chosen = (config.model.name, config.method.name, config.data.name, config.hardware.name)
        assert chosen == (model, method, data, hardware)
    for optim in OPTIONS["optim"]:
        config = compose([f"method={method}", f"optim={optim}"])
        assert (config.optim.name, config.optim.lr) == (optim, config.method.recommended_lr)


def test_methods_bring_their_own_learning_rate_unless_one_is_given() -> None:
    assert compose(["method=full"]).optim.lr == 5e-5
    assert compose(["method=qlora"]).optim.lr == 1e-3
    assert compose(["method=full", "optim.lr=3e-4"]).optim.lr == 3e-4


def test_the_two_smollm2_share_a_file() -> None:
    hub, registry = compose(["model=smollm2_135m"]).model, compose(["model=smollm2_135m_q4"]).model
    assert hub.architecture == registry.architecture
    assert (hub.path, registry.path) == ("HuggingFaceTB/SmolLM2-135M-Instruct", None)


def test_the_demo_is_a_study_of_three_methods() -> None:
    config = compose(["experiment=demo"])
    assert (config.study.name, config.study.trials, config.study.baselines) == ("demo", 6, True)
    assert (config.train.max_steps, config.data.max_length, config.eval.max_samples) == (8, 192, 32)
    assert check(["experiment=demo"], multirun=True) == []
    assert check(["experiment=demo", "method=lora,qlora", "method.rank=4"], multirun=True) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(conf_dir())))
def test_every_file_reads_as_a_document(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# "), "says on its first line what it is"
    assert max(map(len, lines)) <= 120
    bare = [f"{at + 1}: {lines[at]}" for at in fields(file) if not has_comment(lines, at)]
    assert bare == []


def test_the_comment_check_sees_a_bare_field() -> None:
    assert not has_comment(["# a title", "", "rank: 4"], 2)
    assert has_comment(["rank: 4   # capacity"], 0)
    assert has_comment(["# capacity", "rank: 4"], 1)


def has_comment(lines: list[str], at: int) -> bool:
    return " # " in lines[at] or (at > 0 and lines[at - 1].lstrip().startswith("# "))


def fields(file: Path) -> Iterator[int]:
    """The line (from 0) of every field that holds a value; lines inside a block of text are no fields."""
    root = yaml.compose(file.read_text(encoding="utf-8"))
    assert isinstance(root, yaml.MappingNode)
    return walk(root)


def walk(node: yaml.MappingNode) -> Iterator[int]:
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            yield from walk(value)
        elif key.value != "defaults":
            yield key.start_mark.line
