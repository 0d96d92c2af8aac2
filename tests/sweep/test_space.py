import pytest

from framework.config.compose import command_line_loader
from framework.errors import UserError
from framework.sweep.objectives import Objective, best_of, read_constraint, read_objective
from framework.sweep.space import Choice, Interval, read_space


def test_the_whole_sweep_grammar_becomes_dimensions_and_the_rest_stays_as_typed() -> None:
    with command_line_loader([]) as loader:
        typed = ["model=glob(*,exclude=[gpt*,vit])", "a.b=tag(log,interval(1e-4,1e-1))", "n=int(interval(1,8))",
                 "fixed=3", "k=range(1,10,2)", "w=[8],[8,16]", "+x=a,b", "~gone"]  # fmt: skip
        space = read_space(typed, {}, {}, loader)
    assert space.domains == {
        "model": Choice(("cnn", "mlp")),
        "a.b": Interval(1e-4, 1e-1, None, True, False),
        "n": Interval(1, 8, 1, False, True),
        "k": Interval(1, 9, 2, False, True),
        "w": Choice(("[8]", "[8,16]")),
        "x": Choice(("a", "b")),
    }
    values = {"model": "mlp", "a.b": 0.01, "n": 3, "k": 5, "w": "[8,16]", "x": "b"}
    assert space.overrides(values) == ["model=mlp", "a.b=0.01", "n=3", "fixed=3", "k=5", "w=[8,16]", "+x=b", "~gone"]


def test_dimensions_exist_only_where_their_conditions_hold() -> None:
    params = {
        "optimizer.momentum": {"space": "interval(0.5, 0.99)", "when": {"optimizer": "sgd"}},
        "optimizer.betas": {
            "space": ["[0.9,0.99]", "[0.9,0.999]"],
            "when": {"optimizer": "adamw", "model": ["cnn", "mlp"]},
        },
        "optimizer": "adamw, sgd",
        "seed": [1, 2],
    }
    space = read_space(["model=cnn,vit"], params, {})
    assert [d.name for d in space.dimensions] == ["model", "optimizer", "optimizer.momentum", "optimizer.betas", "seed"]
    samples = space.samples()
    assert {"model": "cnn", "optimizer": "sgd", "optimizer.momentum": 0.99, "seed": "1"} in samples
    assert all("optimizer.momentum" not in s or s["optimizer"] == "sgd" for s in samples)
    assert all("optimizer.betas" not in s or (s["optimizer"], s["model"]) == ("adamw", "cnn") for s in samples)
    del params["optimizer.momentum"]
    points = list(read_space(["model=cnn,vit"], params, {}).grid())
    assert len(points) == 2 * (2 + 1) + 2 * (1 + 1)
    typed = read_space(["optimizer=sgd", "model=cnn"], params, {})  # what is typed decides conditions as well
    assert list(typed.grid()) == [{"seed": "1"}, {"seed": "2"}]


def test_a_shuffled_grid_has_one_order_for_each_seed() -> None:
    orders = [list(read_space(["x=shuffle(range(0,20))"], {}, {}, seed=seed).grid()) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(int(p["x"]) for p in orders[0]) == list(range(20))


@pytest.mark.parametrize(
    ("typed", "params", "message"),
    [
        (["x=interval(0,1)"], {}, "x: an interval has no end of values"),
        (["x=tag(log,interval(0,1))"], {}, "a logarithm needs numbers above 0"),
        ([], {"x": {"space": "1,2", "if": {"y": 1}}}, "`x` takes a sweep, a list, or {space"),
        ([], {"x": {"space": "1,2", "when": {"modle": "cnn"}}, "model": "cnn,vit"}, "Did you mean `model`"),
        ([], {"x": {"space": "1,2", "when": {"model": "cmn"}}, "model": "cnn,vit"}, "`model` is cmn, which it never is"),
        ([], {"x": {"space": "1,2", "when": {"y": 1}}, "y": {"space": "1,2", "when": {"x": 1}}}, "x, y depend on each"),
        ([], {"x": "choice(1,"}, "`x: choice(1,` cannot be read"),
    ],
)  # fmt: skip
def test_a_space_that_makes_no_sense_is_refused_with_its_key(typed: list[str], params: dict, message: str) -> None:
    with pytest.raises(UserError) as refused:
        list(read_space(typed, params, {}).grid())
    assert message in str(refused.value)


def test_points_given_by_hand_must_be_of_the_space() -> None:
    space = read_space(["lr=interval(0,1)", "n=range(1,5)", "model=cnn,vit"], {}, {})
    assert space.parse({"lr": 0, "n": 2, "model": "vit"}, "enqueue[0]") == {"lr": 0.0, "n": 2, "model": "vit"}
    for point, message in (({"modle": 1}, "`modle` is not varied. Did you mean `model`?"), ({"lr": 2}, "is not between 0"),
                           ({"model": "vti"}, "Did you mean `vit`?"), ({"n": 1.5}, "is not an integer")):  # fmt: skip
        with pytest.raises(UserError, match="enqueue") as refused:
            space.parse(point, "enqueue[0]")
        assert message in str(refused.value)


def test_the_best_are_those_that_none_dominates() -> None:
    accuracy, latency = Objective("test/accuracy", True), Objective("ms", False)
    values = {0: (0.9, 5.0), 1: (0.8, 1.0), 2: (0.9, 6.0), 3: (0.95, 7.0), 4: (0.9, 5.0)}
    assert best_of(values, [accuracy, latency]) == [0, 1, 3]
    assert best_of({n: v[:1] for n, v in values.items()}, [accuracy]) == [3]


def test_objectives_and_constraints_say_what_is_wrong_with_them() -> None:
    objective = read_objective({"metric": "val/loss", "direction": "minimize"}, "objectives[0]")
    assert objective.value({"val/loss": 1.5}) == 1.5
    with pytest.raises(UserError, match=r"no metric `val/loss`\. Did you mean `val/los`"):
        objective.value({"val/los": 1.5})
    with pytest.raises(UserError, match="is nan"):
        objective.value({"val/loss": float("nan")})
    with pytest.raises(UserError, match=r"objectives\[0\]: takes"):
        read_objective({"metric": "val/loss", "direction": "down"}, "objectives[0]")
    bound = read_constraint("export/onnx/bytes <= 2e5", "constraints[0]")
    assert bound.violation({"export/onnx/bytes": 3e5}) == 1e5
    assert bound.violation({}) == float("inf")
    with pytest.raises(UserError, match=r"constraints\[0\]: takes"):
        read_constraint("bytes < 5", "constraints[0]")
