"""Search spaces: what a command sweeps, as points; which points a grid has; which few hold everything."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest
from omegaconf import OmegaConf

from sweeptune.config.compose import compose, compose_raw
from sweeptune.config.domains import all_values, corner_values, read_domain
from sweeptune.config.errors import ConfigError
from sweeptune.study.space import (
    Choice,
    Domain,
    FloatRange,
    IntRange,
    Parameter,
    Space,
    Value,
    as_override,
    default_name,
    fixed_overrides,
    read_space,
)

RANKS = Choice((4, 8, 16, 32, 64))


def domains(space: Space) -> dict[str, dict[str, Domain]]:
    return {parameter.key: dict(parameter.domains) for parameter in space.parameters}


def problems(overrides: Sequence[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_space(overrides)
    return caught.value.problems


def inline(parameters: str) -> list[str]:
    """A space of its own on the command line, in YAML's flow style."""
    return [f"++space.parameters={parameters}"]


GRAMMAR = [
    ("optim.lr=1e-5,1e-4", Choice((1e-5, 1e-4))),
    ("optim.lr=choice(1e-5,1e-4)", Choice((1e-5, 1e-4))),
    ("optim.lr=choice(1e-5)", Choice((1e-5,))),
    ("optim.lr=1e-3,0.001,1e-4", Choice((1e-3, 1e-4))),
    ("optim.lr=interval(0.1,0.5)", FloatRange(0.1, 0.5)),
    ("optim.lr=interval(1,2)", FloatRange(1.0, 2.0)),
    ("optim.lr=tag(log, interval(1e-5, 1e-3))", FloatRange(1e-5, 1e-3, log=True)),
    ("method.rank=int(interval(4,64))", IntRange(4, 64)),
    ("method.rank=tag(log,int(interval(4,64)))", IntRange(4, 64, log=True)),
    ("method.rank=range(4,9)", IntRange(4, 8)),
    ("method.rank=range(4,17,4)", IntRange(4, 16, step=4)),
    ("method.rank=range(4,16,5)", IntRange(4, 14, step=5)),
    ("method.rank=range(4,5)", IntRange(4, 4)),
    ("seed=range(3)", IntRange(0, 2)),
    ("method.rank=range(3,0,-1)", Choice((3, 2, 1))),
    ("method.rank=sort(16,4,8)", Choice((4, 8, 16))),
    ("method.rank=sort(16,4,8,reverse=true)", Choice((16, 8, 4))),
    ("method.dropout=range(0.1,0.5,0.1)", Choice((0.1, 0.2, 0.3, 0.4))),
    ("method.dropout=float(0,1)", Choice((0.0, 1.0))),
    ("study.name=str(1,2)", Choice(("1", "2"))),
    ("model.path='a b,c',x", Choice(("a b,c", "x"))),
    ("train.max_steps=null,3", Choice((None, 3))),
    ("eval.test=true,false", Choice((True, False))),
    (
        "method.target_modules=[q_proj],[q_proj,v_proj],all-linear",
        Choice((["q_proj"], ["q_proj", "v_proj"], "all-linear")),
    ),
    ("method=glob(*lora*,exclude=rs*)", Choice(("lora", "lora_fp8", "lora_int8", "qlora"))),
]


@pytest.mark.parametrize(("override", "expected"), GRAMMAR, ids=[override for override, _ in GRAMMAR])
def test_hydra_s_grammar(override: str, expected: Domain) -> None:
    assert list(domains(read_space([override])).values()) == [{"*": expected}]
    assert fixed_overrides([override]) == []


REFUSED = [
    ("method.rank=range(4,4)", "is an empty range"),
    ("method.rank=range(4,2)", "is an empty range"),
    ("method.rank=range(4,9,0)", "a step of 0 never arrives"),
    ("optim.lr=interval(1,0)", "from 1.0 to 0.0 is an empty range. The lower end comes first: [0.0, 1.0]"),
    ("optim.lr=tag(log,interval(0,1))", "log from 0.0: a logarithm needs a lower end above 0"),
    ("optim.lr=tag(log,interval(-1,1))", "log from -1.0"),
    ("method.rank=tag(log,range(0,9))", "log from 0"),
    ("method.rank=tag(log,range(1,9,2))", "log with step 2"),
    ("method.rank=tag(log,choice(4,8))", "log is a scale of ranges"),
    ("method.rank=tag(lgo,range(4,8))", "the tag lgo means nothing here. Allowed: log"),
    ("optim.lr=interval(0,inf)", "must be two finite numbers"),
    ("method=glob(x*)", "stands for no value at all. Allowed: dora"),
    ("optim.lr=interval(1)", "cannot be read as an override"),
]


@pytest.mark.parametrize(("override", "says"), REFUSED, ids=[override for override, _ in REFUSED])
def test_ranges_that_are_none(override: str, says: str) -> None:
    [problem] = problems([override])
    assert says in problem and problem.startswith(override.partition("=")[0])


def test_all_problems_come_at_once() -> None:
    wrong = ["method.rank=range(4,2)", "optim.lr=tag(log,interval(0,1))"]
    assert [problem.partition(": ")[0] for problem in problems(wrong)] == wrong


def test_shuffled_values_keep_their_order_when_the_command_is_given_again() -> None:
    command = ["method.rank=shuffle(range(1,40))"]
    space = read_space(command)
    assert read_space(command) == space
    values = corner_values(space.parameters[0].domains["*"])
    assert values != sorted(values) and sorted(values) == list(range(1, 40))


def test_a_swept_key_applies_to_the_methods_that_have_it_and_duplicates_merge() -> None:
    space = read_space(["method=full,lora,qlora", "optim.lr=1e-5,1e-4", "method.rank=4,16"])
    assert space.methods == ("full", "lora", "qlora")
    grid = space.grid()
    assert len(grid) == 2 + 4 + 4
    assert [point for point in grid if point["method"] == "full"] == [
        {"method": "full", "optim.lr": 1e-5},
        {"method": "full", "optim.lr": 1e-4},
    ]
    assert grid[2:5] == [
        {"method": "lora", "optim.lr": 1e-5, "method.rank": 4},
        {"method": "lora", "optim.lr": 1e-5, "method.rank": 16},
        {"method": "lora", "optim.lr": 1e-4, "method.rank": 4},
    ]


def test_a_grid_is_in_the_order_typed() -> None:
    grid = read_space(["seed=1,0", "method=lora,full", "method.rank=8,4"]).grid()
    assert [(point["seed"], point["method"], point.get("method.rank")) for point in grid] == [
        (seed, method, rank) for seed in (1, 0) for method, rank in (("lora", 8), ("lora", 4), ("full", None))
    ]


def test_a_range_is_a_grid_and_an_interval_is_none() -> None:
    assert [point["method.rank"] for point in read_space(["method.rank=range(2,9,3)"]).grid()] == [2, 5, 8]
    space = read_space(["optim.lr=interval(0.1,0.2)", "seed=0,1"])
    assert not space.finite
    with pytest.raises(ConfigError, match=r"optim\.lr: an interval has no end of values"):
        space.grid()


def test_one_method_is_in_play_where_none_is_swept() -> None:
    assert read_space(["optim.lr=1e-3,1e-4"]).methods == ("lora",)
    assert read_space(["method=full", "optim.lr=1e-3,1e-4"]).methods == ("full",)
    assert read_space([]) == Space((), ("lora",))
    assert read_space([]).grid() == [{}] == read_space([]).corners()


def test_the_last_of_two_counts() -> None:
    assert read_space(["optim.lr=1e-3,1e-4", "optim.lr=1e-5"]).parameters == ()
    assert domains(read_space(["optim.lr=1e-5", "optim.lr=1e-3,1e-4"])) == {"optim.lr": {"*": Choice((1e-3, 1e-4))}}


# Spaces in YAML.


def test_method_tradeoff() -> None:
    space = read_space(["space=method_tradeoff"])
    assert space.methods == ("full", "lora", "qlora", "dora")
    found = domains(space)
    assert list(found) == ["method", "optim.lr", "method.rank"]
    assert found["method.rank"] == {"lora": RANKS, "qlora": RANKS, "dora": RANKS}
    assert found["optim.lr"]["full"] == FloatRange(5e-6, 5e-4, log=True)
    assert found["optim.lr"]["dora"] == FloatRange(1e-4, 1e-2, log=True)
    for method in space.methods:
        lr = found["optim.lr"][method]
        assert isinstance(lr, FloatRange)
        assert lr.low < compose([f"method={method}"]).optim.lr < lr.high
    study = compose(["space=method_tradeoff"]).study
    assert (study.confirm_seeds, study.baselines, study.prune, study.trials) == (3, True, True, 30)
    assert fixed_overrides(["space=method_tradeoff", "study.trials=5"]) == ["space=method_tradeoff", "study.trials=5"]


def test_what_is_typed_replaces_what_the_space_has() -> None:
    typed = ["space=method_tradeoff", "method=lora,pissa", "optim.lr=1e-3,1e-4"]
    space = read_space(typed)
    assert space.methods == ("lora", "pissa")
    assert domains(space) == {
        "method": {"*": Choice(("lora", "pissa"))},
        "optim.lr": {"*": Choice((1e-3, 1e-4))},
        "method.rank": {"lora": RANKS},
    }


def test_what_is_fixed_is_no_longer_searched() -> None:
    one = ["space=method_tradeoff", "method=full", "optim.lr=1e-4"]
    assert read_space(one) == Space((), ("full",))
    assert fixed_overrides(one) == one
    lora = read_space(["space=method_tradeoff", "method=lora"])
    assert domains(lora) == {"optim.lr": {"*": FloatRange(1e-4, 1e-2, log=True)}, "method.rank": {"*": RANKS}}


def test_a_fixed_setting_that_some_methods_lack_stays_for_the_others() -> None:
    command = ["space=method_tradeoff", "method.rank=8"]
    space = read_space(command)
    assert domains(space)["method.rank"] == dict.fromkeys(("lora", "qlora", "dora"), Choice((8,)))
    assert fixed_overrides(command) == ["space=method_tradeoff"]
    assert space.baselines()[:2] == [{"method": "full"}, {"method": "lora", "method.rank": 8}]


def test_an_experiment_sweeps_until_the_command_line_does() -> None:
    assert read_space(["experiment=demo"]).methods == ("full", "lora", "qlora")
    assert read_space(["experiment=demo", "method=dora,lora"]).methods == ("dora", "lora")
    assert read_space(["experiment=demo", "method=dora"]) == Space((), ("dora",))


def test_fixed_settings_among_an_experiment_s_sweeps_are_fixed() -> None:
    command = ["experiment=demo", "+hydra.sweeper.params.seed=3"]
    assert "seed" not in read_space(command).swept
    assert "seed=3" in fixed_overrides(command)
    assert "seed=3" not in fixed_overrides([*command, "seed=4"])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["method=full,lora", "optim.lr=1e-4,1e-3", "seed=0"], "method-lr"),
        (["experiment=demo", "optim.lr=1e-4,1e-3"], "demo"),
        (["space=method_tradeoff", "method=full,lora"], "method_tradeoff"),
        (["space=method_tradeoff", "study.name=mine"], "mine"),
        (["experiment=demo", "space=method_tradeoff"], "demo"),
        (["seed=3"], "sweep"),
    ],
)
def test_a_study_has_a_name(overrides: list[str], name: str) -> None:
    assert default_name(overrides) == name


CONDITIONAL = inline(
    "{method:[full,lora],data.packing:[none,pack],method.rank:[4,16],"
    "data.on_long_row:{when:{data.packing:[pack]},choice:[split,drop]},"
    "method.dropout:{when:{method.rank:[16],data.packing:pack},interval:[0.0,0.5]}}"
)


def test_conditions_hold_at_every_point() -> None:
    space = read_space(CONDITIONAL)
    draw = random.Random(0)
    seen = set()
    for _ in range(200):
        point = space.sample(lambda name, domain: draw.choice(corner_values(domain)))
        assert ("data.on_long_row" in point) == (point["data.packing"] == "pack")
        assert ("method.rank" in point) == (point["method"] == "lora")
        wide = point.get("method.rank") == 16 and point["data.packing"] == "pack"
        assert ("method.dropout" in point) == wide
        seen.add(tuple(sorted(point)))
    assert len(seen) == 5


def test_conditions_may_stand_before_what_they_depend_on() -> None:
    space = read_space(inline("{seed:{when:{data.packing:[pack]},choice:[1,2]},data.packing:[none,pack]}"))
    assert space.grid() == [
        {"data.packing": "none"},
        {"data.packing": "pack", "seed": 1},
        {"data.packing": "pack", "seed": 2},
    ]


def test_a_condition_on_what_nothing_sweeps_is_decided_beforehand() -> None:
    space = inline("{optim.eps:{when:{optim:[adamw_8bit]},choice:[1e-8,1e-6]},seed:[0,1]}")
    assert read_space([*space, "optim=adamw_8bit"]).swept == ["optim.eps", "seed"]
    assert read_space([*space, "optim=paged_adamw_8bit"]).swept == ["seed"]
    assert 'nothing sweeps optim, and it is "adamw"' in problems(space)[0]


MISTAKES = [
    ("{method.rank:{when:{methd:[lora]},choice:[4,8]}}", "when methd is lora: no such setting. Did you mean method?"),
    ("{method.rank:{when:{method:[lorra]},choice:[4,8]}}", "lorra: no such method. Allowed: dora, full"),
    ("{method:[full,lora],method.rank:{when:{method:[dora]},choice:[4,8]}}", "no point satisfies this"),
    ("{data.packing:[none,pack],seed:{when:{data.packing:[pakc]},choice:[1,2]}}", 'never "pakc". Did you mean pack?'),
    ("{method.rank:[4,8],seed:{when:{method.rank:[32]},choice:[1,2]}}", "method.rank is never 32. Its values: 4, 8"),
    ("{method.rank:{range:[4,8]},seed:{when:{method.rank:[9]},choice:[1,2]}}", "never 9. It is outside the range"),
    ("{optim.lr:{interval:[1e-4,1e-3]},seed:{when:{optim.lr:[1e-4]},choice:[1,2]}}", "is an interval, which meets"),
    ("{seed:{when:{data.packing:[]},choice:[1,2]}}", "no point satisfies this"),
    ("{seed:{when:[lora],choice:[1,2]}}", "must be a mapping"),
    ("{optim.lr:{full:[1e-4],lroa:[1e-3]}}", "lroa: no such method"),
    ("{optim.lr:{full:[1e-4],lroa:[1e-3]}}", "Did you mean lora?"),
    ("{method:[full,lora],optim.lr:{qlora:[1e-4]}}", "has values for qlora, and only full, lora is swept"),
    ("{optim.lr:{intervall:[1e-4,1e-3]}}", "intervall: no such method"),
    ("{optim.lr:{interval:[1e-4,1e-3],lgo:true}}", "is no list of values and no range. Allowed: [a, b]"),
    ("{optim.lr:{interval:[1e-4]}}", "must be its two ends"),
    ("{optim.lr:{interval:[1e-3,1e-4]}}", "is an empty range"),
    ("{optim.lr:{interval:[0,1e-4],log:true}}", "a logarithm needs a lower end above 0"),
    ("{optim.lr:{interval:[1e-4,1e-3],log:yes please}}", "must be true or false"),
    ("{optim.lr:{interval:[1e-4,1e-3],step:2}}", "an interval has no step"),
    ("{method.rank:{range:[4,64.5]}}", "must be whole numbers"),
    ("{method.rank:{range:[4,64],step:0}}", "the step at least 1"),
    ("{method.rank:{choice:[4],log:true}}", "a choice has no log"),
    ("{method.rank:[]}", "stands for no value at all"),
    ("{method.rank:4}", "4 is one value"),
    ("{method:{full:[1]}}", "must be a list of methods"),
]


@pytest.mark.parametrize(("parameters", "says"), MISTAKES, ids=[parameters for parameters, _ in MISTAKES])
def test_mistakes_in_a_space(parameters: str, says: str) -> None:
    assert says in "\n".join(problems(inline(parameters)))


def test_conditions_in_a_circle_are_refused() -> None:
    circle = "{seed:{when:{data.packing:[pack]},choice:[1,2]},data.packing:{when:{seed:[1]},choice:[none,pack]}}"
    assert "never come to an end" in problems(inline(circle))[0]


# Points.


SPACES = {
    "tradeoff": ["space=method_tradeoff"],
    "conditional": CONDITIONAL,
    "grid": ["method=full,lora,qlora", "optim.lr=1e-5,1e-4", "method.rank=4,16", "seed=range(1,4)"],
    "no method": ["method.rank=tag(log,range(4,65))", "optim.lr=interval(1e-4,1e-3)"],
}


@pytest.mark.parametrize("overrides", SPACES.values(), ids=SPACES)
def test_corners_hold_every_value_and_both_ends_under_each_method(overrides: list[str]) -> None:
    space = read_space(overrides)
    corners = space.corners()
    for method in space.methods:
        mine = [point for point in corners if space.method_of(point) == method]
        for parameter in space.parameters:
            domain = parameter.domain(method)
            wanted = [] if domain is None else corner_values(domain)
            held = [point[parameter.key] for point in mine if parameter.key in point]
            assert {str(v) for v in held} == {str(v) for v in ([method] if parameter.key == "method" else wanted)}
    most = max(len(corner_values(d)) for p in space.parameters for d in p.domains.values())
    assert len(corners) <= len(space.methods) * (most + 2), "few"


@pytest.mark.parametrize("overrides", SPACES.values(), ids=SPACES)
def test_a_space_survives_json(overrides: list[str]) -> None:
    space = read_space(overrides)
    assert Space.from_dict(json.loads(json.dumps(space.as_dict()))) == space


def test_sample_asks_for_what_applies_in_order_and_names_what_differs() -> None:
    space = read_space(["space=method_tradeoff"])
    asked: list[tuple[str, Domain]] = []

    def suggest(name: str, domain: Domain) -> Value:
        asked.append((name, domain))
        return corner_values(domain)[0]

    assert space.sample(suggest, {"method": "full"}) == {"method": "full", "optim.lr": 5e-6}
    assert asked == [("optim.lr[full]", FloatRange(5e-6, 5e-4, log=True))]
    asked.clear()
    assert space.sample(suggest, {"method": "qlora"}) == {"method": "qlora", "optim.lr": 1e-4, "method.rank": 4}
    assert asked == [("optim.lr[qlora]", FloatRange(1e-4, 1e-2, log=True)), ("method.rank", RANKS)]
    asked.clear()
    space.sample(suggest)
    assert asked[0] == ("method", Choice(("full", "lora", "qlora", "dora")))


def test_baselines_leave_out_what_is_swept() -> None:
    methods = ["full", "lora", "qlora", "dora"]
    assert read_space(["space=method_tradeoff"]).baselines() == [{"method": method} for method in methods]
    assert read_space(["optim.lr=1e-3,1e-4"]).baselines() == [{}]


NASTY = [
    "a b,c",
    "null",
    "true",
    "1e3",
    "2024",
    "",
    'it\'s "quoted" \\ and \\"',
    "${method.recommended_lr}",
    "a=b:{c}[d]#|",
    "中文",
    "line\nbreak",
    "-",
    None,
    True,
    0,
    -3,
    1e-5,
    1e16,
    1.0,
    ["a", "b c", ["1", 2, None]],
    [],
    {"path": "a b", "weight": 2.5},
]


@pytest.mark.parametrize("value", NASTY, ids=repr)
def test_any_value_survives_its_override(value: Value) -> None:
    cfg = compose_raw([as_override("model.architecture.held", value)])
    assert OmegaConf.to_container(cfg.model.architecture)["held"] == value
    space = Space((Parameter("study.storage", {"*": Choice((value,))}, {}),), ("lora",))
    composed = OmegaConf.to_container(compose_raw(space.overrides({"study.storage": value})).study)["storage"]
    assert (composed, type(composed)) == (value, type(value))


def test_overrides_are_in_the_order_typed_and_compose() -> None:
    command = ["optim.lr=1e-4,1e-3", "method=full,lora", "method.rank=4,8", "model.architecture.new_key=1,2"]
    space = read_space(["optim.lr=1e-4,1e-3", "method=full,lora", "+model.architecture.new_key=1,2"])
    texts = space.overrides(space.grid()[-1])
    assert texts == ["optim.lr=0.001", "method=lora", "++model.architecture.new_key=2"]
    config = compose([*fixed_overrides(command), *texts])
    assert (config.optim.lr, config.method.name) == (1e-3, "lora")
    assert config.model.architecture is not None and config.model.architecture["new_key"] == 2


@pytest.mark.parametrize("domain", [Choice((1, "a", None)), IntRange(1, 7, step=3), FloatRange(0.1, 1.0, log=True)])
def test_a_domain_is_read_back(domain: Domain) -> None:
    from sweeptune.config.domains import as_plain

    assert read_domain(json.loads(json.dumps(as_plain(domain)))) == domain
    if isinstance(domain, FloatRange):
        with pytest.raises(ConfigError):
            all_values(domain)
