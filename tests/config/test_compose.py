"""From YAML to Config and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from sweeptune.config.check import groups
from sweeptune.config.compose import compose, conf_dir, dump, load, to_config
from sweeptune.config.errors import ConfigError


def test_conf_dir_is_the_repositorys() -> None:
    assert conf_dir() == Path(__file__).resolve().parents[2] / "conf"


@pytest.mark.parametrize("method", groups()["method"])
def test_dump_and_load_round_trip(method: str, tmp_path: Path) -> None:
    config = compose([f"method={method}", "optim.eps=1e-8", "study.name='2024'", "data.path='ä: {b}.jsonl'"])
    file = tmp_path / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert load(file) == config


def test_what_is_dumped_has_no_interpolation_left() -> None:
    assert "${" not in dump(compose())


def test_load_names_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.yaml: is not YAML"):
        load(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- a", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"list\.yaml: holds no settings"):
        load(tmp_path / "list.yaml")


def test_all_problems_of_a_configuration_are_listed_at_once() -> None:
    values = OmegaConf.create(dump(compose()))
    values.method.rank = 0
    values.optim.lr = "fast"
    values.method.target_modules = 3
    values.trian = {"max_steps": 1}
    del values["seed"]
    with pytest.raises(ConfigError) as caught:
        to_config(values)
    assert sorted(caught.value.problems) == [
        "method.rank=0: must be a whole number of at least 1.",
        "method.target_modules=3: must be text or a list of text.",
        'optim.lr="fast": must be a number above 0.',
        "seed: is missing. conf/train.yaml and the groups in conf/ give every setting a value.",
        "trian: no such setting. Take it out.",
    ]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data.path", "???", r"data\.path: has no value yet \(\?\?\?\)"),
        ("optim.lr", "${method.nothing}", r"optim\.lr: cannot be resolved"),
        ("method.name", "lorra", r"method\.name=lorra: no such method\. Allowed: dora, full"),
        ("method.name", "full", r"method\.rank: no such setting with method=full"),
        ("method.rank", True, r"method\.rank=true: must be a whole number"),
        ("method.rank", "4", r'method\.rank="4": must be a whole number'),
        ("optim.lr", float("nan"), r"optim\.lr=NaN: must be a number above 0"),
        ("train", None, r"train=null: must be a mapping, with the fields tokens_per_step"),
        ("method", None, r"method=null: must be a mapping, with the fields name"),
        ("model.path", 3, r"model\.path=3: must be text or null"),
    ],
)
def test_to_config_refuses(key: str, value: object, says: str) -> None:
    values = OmegaConf.create(dump(compose()))
    OmegaConf.update(values, key, value)
    with pytest.raises(ConfigError, match=says):
        to_config(values)


def test_compose_passes_on_what_hydra_refuses() -> None:
    with pytest.raises(ConfigError, match="Could not find 'method/lorra'"):
        compose(["method=lorra"])


def test_compose_works_inside_a_hydra_application() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        outer = GlobalHydra.instance().hydra
        assert compose(["method=pissa"]).method.name == "pissa"
        assert GlobalHydra.instance().hydra is outer


def test_checking_a_command_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from sweeptune.config.check import check; "
        "problems = check(['method=lora,qlora', 'optim.lr=fast', 'data.path=missing.jsonl'], multirun=True); "
        "assert len(problems) == 2, problems; "
        "assert not {'torch', 'transformers', 'bitsandbytes'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
