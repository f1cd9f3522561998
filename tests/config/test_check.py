"""Every refusal: it names the override as typed, what is allowed or the nearest name, and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeptune.config.check import check, check_overrides
from sweeptune.config.compose import compose
from sweeptune.config.study_rules import FIGURES
from sweeptune.tracking.record import PARTS

SINGLE = [
    # Names.
    (
        "method=lorra",
        "no such method. Allowed: dora, full, lora, lora_fp8, lora_int8, pissa, qlora, rslora. Did you mean method=l",
    ),
    ("method=zzz", "For example method=dora"),
    ("tracker=null", "Leave tracker out"),
    ("experiment=dmeo", "Did you mean experiment=demo?"),
    ("data=my/chats.jsonl", "Did you mean data=jsonl data.path=my/chats.jsonl?"),
    ("model=owner/name", "Did you mean model.path=owner/name?"),
    ("method.rnak=4", "Did you mean method.rank=4?"),
    ("methd=lora", "Did you mean method=lora?"),
    ("optm.lr=1e-3", "Did you mean optim.lr=1e-3?"),
    ("lr=1e-3", "Did you mean optim.lr=1e-3?"),
    ("optim.rank=3", "Did you mean method.rank=3?"),
    ("train=3", "train is a section, not one setting. Its fields: tokens_per_step, max_steps"),
    ("method.name=full", "Choose the option: method=full"),
    ("method@other=lora", "Write method=lora"),
    # Plus and minus.
    ("+method.rank2=4", "Did you mean method.rank=4?"),
    ("++method.rank2=4", "Did you mean method.rank=4?"),
    ("+method.foo=1", "Allowed: method.name, method.recommended_lr, method.rank"),
    ("+foo=1", "Allowed: model, method, data"),
    ("+seed=1", "Drop the +: seed=1"),
    ("+method=lora", "Write method=lora"),
    ("~seed", "every run needs seed"),
    ("~method", "every run needs method"),
    ("~method.rank", "every run needs method.rank"),
    ("~method.rnak", "Did you mean ~method.rank?"),
    # Types and bounds.
    ("optim.lr=fast", "must be a number above 0. For example optim.lr=0.001"),
    ("optim.lr=inf", "must be a number above 0"),
    ("optim.lr=0", "must be a number above 0"),
    ("optim.lr=", "must be a number above 0"),
    ("method.rank=0", "must be a whole number of at least 1. For example method.rank=16"),
    ("method.rank=1.5", "must be a whole number"),
    ("method.dropout=1", "must be a number of at least 0 and below 1"),
    ("method.target_modules=[1]", "must be text or a list of text"),
    ("seed=true", "must be a whole number of at least 0. For example seed=0"),
    ("seed=???", "must be a whole number"),
    ("eval.test=yes", "must be true or false. For example eval.test=false"),
    ("hardware.precision=fp61", "Did you mean hardware.precision=fp16?"),
    ("study.name=2024", "quote it: 'study.name=\"2024\"'"),
    ("model.architecture.hiden_size=32", "Did you mean model.architecture.hidden_size=32?"),
    ("+model.architecture.hidden_size=32", "Drop the +"),
    ("~model.architecture.nothing", "there is no model.architecture.nothing"),
    ("optim.lr=${nothing}", "cannot be resolved"),
    # Shape.
    ("foo", "Write key=value"),
    ("method = lora", "Write key=value"),
    ("seed=0,1", "Add --multirun"),
    ("method=lora,qlora", "Add --multirun"),
    ("method.target_modules=q_proj,v_proj", "a list: 'method.target_modules=[q_proj,v_proj]'"),
    ("hydra.nothing=1", "hydra.nothing"),
    # Mappings whose keys are free.
    ("++space.parameters.optim.lr={}", "'space.parameters={optim.lr: [<a>, <b>]}', or sweep it by itself: 'optim.lr"),
    ("space.parameters.method.rank={choice: [4,8]}", "so this would be rank inside of method, not method.rank"),
    ("space.parameters={optim.lr: [1e-4,1e-3]}", "Add --multirun"),
    ("++space.parameters={optim.lr: {}}", "Add --multirun"),
    ("study.constraints.eval.loss=3", "not eval.loss. Write 'study.constraints={eval.loss: 3}'"),
    (
        "study.constraints={tokens_per_s: abc}",
        "study.constraints.tokens_per_s=abc (in study.constraints={tokens_per_s: ",
    ),
    ("study.constraints={peak_memory_gib: 8, tokens_per_s: {}}", "study.constraints.tokens_per_s={} (in study.constr"),
]


@pytest.mark.parametrize(("override", "says"), SINGLE, ids=[override for override, _ in SINGLE])
def test_one_wrong_override_is_one_problem_that_says_how_to_mend_it(override: str, says: str) -> None:
    problems = check([override], multirun=False)
    assert len(problems) == 1
    assert override.partition("=")[0].lstrip("+~") in problems[0]
    assert says in problems[0]


RULES = [
    (["data=jsonl", "data.path=missing.jsonl"], "data.path=missing.jsonl: no such file or folder; relative paths"),
    (["data=text", "data.path=missing.txt"], "data.path=missing.txt: no such file or folder"),
    (["data=jsonl", "data.path=[]"], "data.path=[]: names no file"),
    (["template=jinja"], "none is given. Name it: template=jinja template.path=<file>.jinja"),
    (["template=jinja", "template.path=missing.jinja"], "template.path=missing.jinja: no such file"),
    (["template.path=mine.jinja"], "template=auto reads no file. For a template of your own use template=jinja"),
    (["template=chatml", "template.path=x"], "template=chatml reads no file"),
    (["data=jsonl"], "data=jsonl data.path=<file>.jsonl"),
    (
        ["data=text"],
        "data=text data.path=<file>.txt (or a folder), or take the text that Python carries: data=pydocs_t",
    ),
    (["data=hub"], "Name one: data=hub data.path=<owner>/<name>"),
    (["data=jsonl", "data.path=."], "data.path=.: this folder holds no file that is known; known are .jsonl, .ndjson"),
    (["data.path=missing.jsonl"], "Besides, no such file or folder"),
    (
        ["data.path=missing.jsonl"],
        "A file is read by data=jsonl data.path=missing.jsonl; for pydocs leave data.path out",
    ),
    (["data=pydocs_text", "data.path=a.txt"], "A file is read by data=text data.path=a.txt; for pydocs_text leave"),
    (["data.mix=[{path: a.jsonl}]"], "data.mix: data=pydocs reads Python's own docstrings"),
    (["data=jsonl", "data.mix=[]"], "data.mix=[]: names no dataset. Give data.mix=[{path: a.jsonl, weight: 2}"),
    (["data=jsonl", "data.mix=[{path: a.jsonl}]"], "data.mix[0].path=a.jsonl: no such file or folder"),
    (["data=jsonl", "data.path=a.jsonl", "data.mix=[{path: a.jsonl}]"], "are both given: the data is either one"),
    (["data=hub", "data.mix=[{path: a.jsonl}]"], "data=hub reads one dataset. Use data=jsonl data.mix=[...]"),
    (["data=hub", "data.path=[a/b,c/d]"], "data.path=[a/b,c/d]: data=hub reads one dataset"),
    (["data=hub", "data.path=./a.jsonl"], "is neither a hub id nor a folder on this machine. Give data.path=<owner>/"),
    (["data=hub", "data.path=a/b/c"], "a file is read by data=jsonl data.path=a/b/c"),
    (
        ["data.streaming=true"],
        "data.streaming=true: is for hub datasets, and this is data=pydocs. Leave it out (data.str",
    ),
    (
        ["data.split=test"],
        "data.split=test: is for hub datasets, and this is data=pydocs. Leave it out (data.split=train)",
    ),
    (["data.subset=main"], "Leave it out (data.subset=null), or use data=hub data.path=<owner>/<name>"),
    (["data.revision=main"], "data.revision=main: is for hub datasets"),
    (["data.eval_fraction=0.5", "data.test_fraction=0.5"], "leave nothing to train on"),
    (["train.tokens_per_step=100"], "train.tokens_per_step=256, or shorten the rows, data.max_length=100"),
    (["train.epochs=null"], "for example train.epochs=1"),
    (["hardware=cpu", "hardware.precision=fp16"], "Use hardware.precision=fp32 or hardware.precision=bf16"),
    (["hardware=cpu", "model.dtype=fp16"], "Use model.dtype=fp32 or model.dtype=bf16"),
    (["method=full", "model.dtype=fp16"], "model.dtype=fp16 with method=full"),
    (["hardware=cpu", "hardware.gradient_checkpointing=offload"], "Use hardware.gradient_checkpointing=true"),
    (["hardware=cpu", "optim=paged_adamw_8bit"], "Use optim=adamw_8bit or optim=adamw"),
    (["hardware=cpu", "hardware.memory_cap_gib=4"], "Use hardware.memory_cap_gib=null"),
    (["hardware.gpus=1", "hardware.gpus_per_trial=2"], "Use hardware.gpus_per_trial=1 or hardware.gpus=2"),
    (["model.weights=random", "model.architecture=null"], "(model=tiny)"),
    (["model.path=./nowhere"], "model.path=./nowhere: no such folder"),
    (["resume=nowhere"], "resume=nowhere: no such folder"),
    (["resume=."], "holds no config.yaml"),
    (["method=full", "method.rank=4"], "method=full has no rank. These methods have it: dora, lora"),
    (["method=lora", "method=full"], "method is given twice"),
]


@pytest.mark.parametrize(("overrides", "says"), RULES, ids=[" ".join(overrides) for overrides, _ in RULES])
def test_settings_that_cannot_work_together(
    overrides: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    problems = check(overrides, multirun=False)
    assert len(problems) == 1
    assert says in problems[0]


FILE_RULES = [
    (["data=jsonl", "data.path=[a.jsonl,b.jsonl]"], "data.path=[a.jsonl,b.jsonl]: b.jsonl: no such file or folder"),
    (
        ["data=jsonl", "data.path=table.xlsx"],
        "unknown file ending; known are .jsonl, .ndjson, .json, .csv, .tsv, .parq",
    ),
    (["data=jsonl", "data.path=rows.parquet.gz"], "all but .parquet also with .gz behind"),
    (["data=jsonl", "data.path=books"], "its 1 text files are read by data=text"),
    (
        ["data=text", "data.path=empty"],
        "this folder holds no file that is known; known are .jsonl, .ndjson, .json, .csv",
    ),
    (["data=text", "data.path=a.jsonl", "data.format=alpaca"], "data=text reads raw text only. Rows of other formats"),
    (["data=text", "data.mix=[{path: a.jsonl, format: qa}]"], "data.mix[0].format=qa: data=text reads raw text only"),
    (["data=jsonl", "data.path=books/a.txt"], "not rows. Raw text is read by data=text data.path=books/a.txt"),
    (["data=jsonl", "data.mix=[{path: a.jsonl, weight: 2}, {path: books/a.txt}]"], "others do not (books/a.txt). Give"),
    (["data=jsonl", "data.mix=[{path: a.jsonl}, {path: table.xlsx}]"], "data.mix[1].path=table.xlsx: unknown file end"),
]


@pytest.fixture
def some_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files to name; what is in them is not looked at."""
    for name in ("a.jsonl", "table.xlsx", "rows.parquet.gz", "books/a.txt", "empty/.hidden.jsonl", "empty/a.xyz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("some_files")
@pytest.mark.parametrize(("overrides", "says"), FILE_RULES, ids=[" ".join(overrides) for overrides, _ in FILE_RULES])
def test_files_that_cannot_be_read(overrides: list[str], says: str) -> None:
    problems = check(overrides, multirun=False)
    assert len(problems) == 1
    assert says in problems[0]


@pytest.mark.usefixtures("some_files")
@pytest.mark.parametrize(
    "overrides",
    [
        ["data=jsonl", "data.path=[a.jsonl,books/a.txt]"],
        ["data=jsonl", "data.path=."],
        ["data=text", "data.path=books"],
        ["data=jsonl", "data.mix=[{path: a.jsonl, weight: 2}, {path: books, weight: 1, format: text}]"],
        ["data=pydocs_text"],
        ["data=hub", "data.path=openai/gsm8k", "data.subset=main", "data.split=test", "data.streaming=true"],
        ["data=hub", "data.path=squad", "data.revision=v1.0"],
        ["data=hub", "data.path=./books"],
    ],
    ids=" ".join,
)
def test_sources_that_are_let_through(overrides: list[str]) -> None:
    assert check(overrides, multirun=False) == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["hardware=gpu"], "hardware.device=cuda: torch finds no GPU here"),
        (["hardware.precision=fp16"], "torch finds no GPU here (hardware.device=auto)"),
        (["optim=paged_adamw_8bit"], "torch finds no GPU here (hardware.device=auto)"),
    ],
)
def test_without_a_gpu(overrides: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeptune.config.rules.gpu_count", lambda: 0)
    problems = check(overrides, multirun=False)
    assert len(problems) == 1 and says in problems[0]


def test_with_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeptune.config.rules.gpu_count", lambda: 1)
    allowed = ["hardware=gpu", "hardware.precision=fp16", "optim=paged_adamw_8bit", "hardware.memory_cap_gib=4"]
    assert check(allowed, multirun=False) == []
    offload = ["hardware=gpu", "hardware.gradient_checkpointing=offload"]
    assert check(offload, multirun=False) == []
    for override in ("hardware.kernels=plain", "hardware.precision=fp32"):
        (problem,) = check([*offload, override], multirun=False)
        assert "needs the fused kernels" in problem and override in problem
    problems = check(["hardware=gpu", "hardware.gpus_per_trial=2"], multirun=False)
    assert problems == ["hardware.gpus_per_trial=2: this machine has 1. Use hardware.gpus_per_trial=1"]


@pytest.mark.parametrize(("installed", "says"), [(False, "is not installed"), (True, "needs a GPU")])
@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flash_attention_4"])
def test_flash_attention(name: str, installed: bool, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeptune.config.rules.flash_installed", lambda attention: installed)
    problems = check(["hardware=cpu", f"model.attention={name}"], multirun=False)
    assert len(problems) == 1 and says in problems[0]


@pytest.mark.parametrize(("name", "says"), [("varlen", "needs a GPU"), ("flex", "has no backward pass on a CPU")])
def test_attention_for_gpus(name: str, says: str) -> None:
    problems = check(["hardware=cpu", f"model.attention={name}"], multirun=False)
    assert len(problems) == 1 and says in problems[0] and "Use model.attention=sdpa" in problems[0]


def test_flash_attention_does_not_compute_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeptune.config.rules.gpu_count", lambda: 1)
    problems = check(["hardware=gpu", "model.attention=varlen", "hardware.precision=fp32"], multirun=False)
    assert len(problems) == 1 and "Use hardware.precision=bf16 or model.attention=sdpa" in problems[0]


def test_truncating_before_cutting_is_refused() -> None:
    problems = check(["data.packing=split", "data.on_long_row=truncate"], multirun=False)
    assert len(problems) == 1 and "Use data.on_long_row=auto" in problems[0]
    assert check(["data.packing=pack", "data.on_long_row=truncate"], multirun=False) == []


def test_several_at_once_are_all_listed_in_order() -> None:
    argv = ["method=lorra", "method.rnak=4", "optim.lr=fast", "data.path=missing.jsonl"]
    problems = check(argv, multirun=False)
    assert [problem.partition(": ")[0] for problem in problems] == argv
    assert check_overrides(argv, multirun=False) == problems[:3]


def test_what_hydra_refuses_does_not_hide_the_rest() -> None:
    problems = check(["hydra.nothing=1", "method.rnak=4", "train.epochs=null"], multirun=False)
    assert [problem.split()[0] for problem in problems] == ["method.rnak=4:", "Hydra", "train.max_steps,"]


def test_one_mistake_in_a_group_does_not_cause_others(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.touch()
    assert len(check(["data=jsnol", f"data.path={file}"], multirun=False)) == 1
    assert len(check(["method=ful", "train.max_steps=3"], multirun=False)) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=qlora", "method.rank=8", "optim.lr=5e-4", "seed=3"],
        ["method.target_modules=[q_proj,v_proj]", "method.alpha=16"],
        ["optim.lr=${method.recommended_lr}"],
        ["++method.rank=8"],
        ["model.path=owner/name", "model.name=mine"],
        ["model.architecture.hidden_size=32", "+model.architecture.head_dim=8", "~model.architecture.pad_token_id"],
        ["study.name='2024'", "hydra.run.dir=elsewhere"],
        ["experiment=demo", "train.max_steps=2"],
        ["hardware=cpu", "optim=adamw_8bit"],
        ["hardware=cpu", "method=lora_int8"],
        ["hardware=cpu", "hardware.gpus_per_trial=2"],
    ],
    ids=" ".join,
)
def test_what_works_is_let_through(overrides: list[str]) -> None:
    assert check(overrides, multirun=False) == []


def test_resume_takes_no_other_setting(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("", encoding="utf-8")
    assert check([f"resume={tmp_path}", "hydra.run.dir=x"], multirun=False) == []
    problems = check([f"resume={tmp_path}", "optim.lr=1e-3"], multirun=False)
    assert len(problems) == 1 and problems[0].startswith("optim.lr=1e-3: resume= goes on with the settings")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method=full,lorra", "method=lorra (in method=full,lorra): no such method"),
        ("method=choice(full,lorra)", "method=lorra (in method=choice(full,lorra)): no such method"),
        ("method=glob(x*)", "stands for no value at all. Allowed: dora"),
        ("optim.lr=1e-3,fast", "optim.lr=fast (in optim.lr=1e-3,fast): must be a number above 0"),
        ("seed=range(-1,2)", "seed=-1 (in seed=range(-1,2)): must be a whole number"),
        ("method.rnak=4,8", "Did you mean method.rank=4,8?"),
        ("optim.lr=interval(0,1)", "optim.lr=0.0 (in optim.lr=interval(0,1)): must be a number above 0"),
        ("optim.lr=tag(log,interval(0,1))", "log from 0.0: a logarithm needs a lower end above 0"),
        ("method.rank=interval(4,8)", "method.rank is a whole number. Write method.rank=int(interval(4,8))"),
        ("method.rank=range(4,4)", "is an empty range"),
        ("study.margin=0,1", "study.margin cannot be swept"),
        ("space=none,method_tradeoff", "space cannot be swept"),
        ("experiment=demo,demo", "experiment cannot be swept"),
        ("hydra.job.num=1,2", "hydra.job.num cannot be swept"),
        ("resume=a,b", "resume cannot be swept"),
        ("data.max_length=glob(*)", "glob works for groups only"),
        ("train.tokens_per_step=100,4096", "train.tokens_per_step=100 is smaller than the longest row"),
    ],
)
def test_every_element_of_a_sweep_is_checked(override: str, says: str) -> None:
    problems = check([override], multirun=True)
    assert len(problems) == 1 and says in problems[0]


def test_a_swept_key_is_for_the_methods_that_have_it_and_a_fixed_one_for_all() -> None:
    assert check(["method=full,lora,qlora", "method.rank=4,8"], multirun=True) == []
    fixed = check(["method=full,lora,qlora", "method.rank=4"], multirun=True)
    assert len(fixed) == 1 and "method=full has no rank" in fixed[0] and "method=lora,qlora method.rank=4" in fixed[0]
    for none in (["method=full", "method.rank=4,8"], ["method=full", "method.rank=range(4,9)"]):
        problems = check(none, multirun=True)
        assert len(problems) == 1 and "method=full has no rank" in problems[0]
    wrong = check(["method=full,lora", "method.rank=4,0"], multirun=True)
    assert len(wrong) == 1 and "method.rank=0 (in method.rank=4,0): must be a whole number" in wrong[0]


def test_every_combination_of_a_sweep_is_validated() -> None:
    argv = ["seed=0,1", "train.tokens_per_step=300,2048", "data.max_length=256,512"]
    problems = check(argv, multirun=True)
    assert len(problems) == 1 and "train.tokens_per_step=300" in problems[0] and "data.max_length=512" in problems[0]


def test_a_good_sweep_is_let_through() -> None:
    assert check(["method=full,lora,qlora", "seed=range(0,3)", "optim.lr=1e-3,1e-4"], multirun=True) == []
    assert check(["method=glob(*lora*)", "method.rank=4,8"], multirun=True) == []


def test_one_wrong_method_of_a_sweep_does_not_hide_the_other_problems() -> None:
    problems = check(["method=full,lorra", "method.rank=4,8", "optim.lr=1e-3,fast"], multirun=True)
    assert [problem.partition(" ")[0] for problem in problems] == ["method=lorra", "optim.lr=fast"]


def test_both_ends_of_a_range_meet_the_rules() -> None:
    space = ["train.tokens_per_step=range(300,2049)", "data.max_length=int(interval(256,512))"]
    problems = check([*space, "study.trials=8"], multirun=True)
    assert len(problems) == 1 and "train.tokens_per_step=300" in problems[0] and "data.max_length=512" in problems[0]


def test_values_of_a_large_space_are_all_tried() -> None:
    steps = ",".join(str(512 + at) for at in range(300))
    argv = [f"train.tokens_per_step={steps},100", "optim.lr=interval(1e-4,1e-3)", "study.trials=8"]
    problems = check(argv, multirun=True)
    assert len(problems) == 1 and problems[0].startswith("train.tokens_per_step=100 is smaller")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.max_steps=${nothing},3", "cannot be resolved"),
        ("data.max_length=${train.tokens_per_step},4096", "data.max_length=4096"),
        ("train.tokens_per_step=${data.max_length},100", "train.tokens_per_step=100 is smaller"),
        ("method.recommended_lr=1e-3,1e-4", None),
        ("model.architecture.hidden_size=32,64", None),
        ("data.mix=[{path: a.jsonl}],null", "data.mix: data=pydocs reads"),
        ("model.architecture={hidden_size: 32},null", None),
    ],
)
def test_values_that_other_settings_lean_on(override: str, says: str | None) -> None:
    problems = check([override], multirun=True)
    assert [says for problem in problems if says and says in problem] == ([says] if says else []), problems
    assert len(problems) == (says is not None)


def test_the_shipped_space() -> None:
    assert check(["space=method_tradeoff"], multirun=True) == []
    assert check(["space=method_tradeoff", "method=lora,qlora", "method.rank=4"], multirun=True) == []
    assert check(["space=method_tradeoff", "method.rank=4"], multirun=True) == []
    single = check(["space=method_tradeoff"], multirun=False)
    assert len(single) == 1 and "Add --multirun" in single[0]


def space(parameters: str) -> list[str]:
    return [f"space.parameters={parameters}", "study.trials=4"]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ("{method:[full,lorra]}", "space=none: method=lorra (in method=choice(full,lorra)): no such method"),
        ("{method.rnak:[4,8]}", "space=none: method.rnak=choice(4,8): no such setting. Did you mean method.rank"),
        ("{method:[full,lora],method.rank:{full:[4]}}", "method=full has no rank"),
        ("{method.rank:{when:{method:[lora,full]},choice:[4,8]},method:[full,lora]}", "method=full has no rank"),
        ("{optim.lr:{lora:[fast]}}", "optim.lr=fast (in optim.lr=choice(fast)): must be a number"),
        ("{optim.lr:{interval:[-1,1]}}", "optim.lr=-1.0 (in optim.lr=interval(-1.0,1.0)): must be a number above 0"),
        ("{method.rank:{range:[0,4]}}", "method.rank=0 (in method.rank=range(0,5)): must be a whole number"),
        ("{data.packing:[pakc]}", "Did you mean data.packing=pack?"),
        ("{study.margin:[0.1,0.2]}", "study.margin cannot be swept"),
        ("{resume:[a,b]}", "resume cannot be swept"),
        ("{seed:{when:{methd:[lora]},choice:[0,1]}}", "when methd is lora: no such setting. Did you mean method?"),
        ("{train.tokens_per_step:[100,4096]}", "train.tokens_per_step=100 is smaller than the longest row"),
    ],
)
def test_every_parameter_of_a_space_is_checked(parameters: str, says: str) -> None:
    problems = check(space(parameters), multirun=True)
    assert len(problems) == 1 and says in problems[0]


@pytest.mark.parametrize("chosen", [[], ["space=method_tradeoff", "study.trials=30"]], ids=["alone", "in a space"])
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("++space.parameters.optim.lr={}", "++space.parameters.optim.lr={}: here a dot begins a level"),
        ("++space.parameters.method.rank={choice:[4,8]}", "Write 'space.parameters={method.rank: [<a>, <b>]}'"),
        ("++space.parameters.seed={}", "seed: {} is no list of values and no range"),
        (
            "++space.parameters.seed=${nothing}",
            "space.parameters.seed: cannot be resolved: Interpolation key 'nothing'",
        ),
        ("++space.parameters={seed: ${nothing}}", "Write the values out"),
    ],
)
def test_no_shape_of_a_space_ends_in_a_traceback(chosen: list[str], override: str, says: str) -> None:
    problems = check([*chosen, override], multirun=True)
    assert len(problems) == 1 and says in problems[0]


def test_mistakes_of_a_space_and_of_the_command_come_together() -> None:
    problems = check([*space("{method.rnak:[4],optim.lr:{lora:[fast]}}"), "train.epochs=soon"], multirun=True)
    assert [problem.split(":")[0] for problem in problems] == ["train.epochs=soon", "space=none", "space=none"]


SEARCHES = [
    (["optim.lr=interval(1e-4,1e-3)"], "optim.lr has no end of values: the search would never end"),
    (["optim.lr=1e-4,1e-3", "study.sampler=tpe"], "for example study.trials=30"),
    (["optim.lr=interval(1e-4,1e-3)", "study.sampler=grid"], "study.sampler=grid: an interval has no end of values"),
    (["seed=0,1", "study.trials=2"], "seed is swept with study.sampler=tpe"),
    (["seed=0,1", "study.sampler=random", "study.trials=2"], "study.replicates=3"),
    (
        ["method=full,lora,qlora", "optim.lr=1e-4,1e-3", "study.trials=2", "study.baselines=true"],
        "study.trials=2 with study.baselines=true: each of the 3 methods",
    ),
    (["study.objectives=[eval_los]"], "no record has eval_los. Did you mean eval_loss?"),
    (["study.objectives=[loss]"], "Did you mean eval.loss?"),
    (["study.objectives=[eval.tokens_per_s]"], "Did you mean tokens_per_s?"),
    (["study.objectives=[test.loss]"], "test.loss is for the verdict, and a search that looked at it would spoil it"),
    (["study.objectives=[eval_loss,eval_loss]"], "eval_loss stands there twice"),
    (["study.constraints={peak_memory: 8}"], "study.constraints.peak_memory=8.0: no record has peak_memory"),
    (["study.constraints.peak_memory_gib=much"], "study.constraints.peak_memory_gib=much: must be a number"),
]


@pytest.mark.parametrize(("overrides", "says"), SEARCHES, ids=[" ".join(overrides) for overrides, _ in SEARCHES])
def test_what_no_search_can_do(overrides: list[str], says: str) -> None:
    problems = check(overrides, multirun=True)
    assert len(problems) == 1 and says in problems[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["study.constraints={peak_memory_gib: 8, memory.phases.eval.reserved_gib: 4}"],
        ["study.constraints.peak_memory_gib=8"],
        ["+study.constraints.tokens_per_s=100"],
        ["study.objectives=[eval.bits_per_byte,speed.mfu,params.trainable]"],
        ["seed=0,1,2"],
        ["method=full,lora", "seed=0,1,2", "study.sampler=grid", "study.trials=4"],
        ["optim.lr=tag(log,interval(1e-5,1e-3))", "study.trials=4", "study.sampler=nsga2"],
        ["method=full,lora", "optim.lr=1e-4,1e-3", "study.trials=2", "study.baselines=true"],
        ["method=full,lora,qlora", "optim.lr=1e-4,1e-3", "study.trials=2"],
    ],
    ids=" ".join,
)
def test_searches_that_are_let_through(overrides: list[str]) -> None:
    assert check(overrides, multirun=True) == []


@pytest.mark.parametrize("multirun", [True, False], ids=["multirun", "one run"])
@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("hydra.sweeper.n_trials=30", "Write study.trials=30"),
        ("+hydra.sweeper.n_trials=30", "Write study.trials=30"),
        ("hydra.sweeper.n_jobs=4", "Write hardware.gpus=4"),
        ("hydra.sweeper.storage=sqlite:///a.db", "Write study.storage=sqlite:///a.db"),
        ("hydra.sweeper.direction=maximize", "Write study.objectives=[eval_loss]"),
        ("hydra.sweeper.sampler.seed=3", "Write seed=3"),
        ("hydra.sweeper.sampler.n_startup_trials=3", "Write study.sampler=tpe (or nsga2"),
        ("hydra/sweeper/sampler=nsgaii", "Write study.sampler=nsga2"),
        ("hydra/sweeper=optuna", "Write study.trials=<n> and study.sampler=tpe"),
        ("hydra/sweeper=basic", "no other sweeper of Hydra's can run"),
        ("++hydra.sweeper={}", "conf/study/default.yaml"),
        ("+hydra.sweeper.params.optim.lr=interval(1e-5,1e-3)", "Write 'optim.lr=interval(1e-5,1e-3)'"),
        ("hydra/launcher=joblib", "no other launcher of Hydra's can run. Write hardware.gpus=<n>"),
        ("hydra.launcher.n_jobs=2", "study.trials_per_gpu"),
    ],
)
def test_settings_of_hydras_own_sweepers_have_other_names_here(override: str, fix: str, multirun: bool) -> None:
    problems = check([override], multirun=multirun)
    assert len(problems) == 1 and problems[0].startswith(f"{override}: ") and fix in problems[0]


def test_our_sweeper_may_be_named() -> None:
    assert check(["hydra/sweeper=study", "hydra/launcher=basic", "seed=0,1"], multirun=True) == []


def test_constraints_are_given_like_any_setting() -> None:
    for text in ("study.constraints={peak_memory_gib: 8}", "study.constraints.peak_memory_gib=8"):
        assert compose([text]).study.constraints == {"peak_memory_gib": 8.0}


def test_figures_are_those_of_the_record() -> None:
    for part, names in FIGURES.items():
        assert set(names) <= set(PARTS[part])
