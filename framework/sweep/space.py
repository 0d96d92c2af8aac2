"""What a sweep varies: Hydra's sweep grammar, typed or in YAML, as dimensions that may depend on each other."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from framework.errors import UserError, did_you_mean

Value = str | int | float
_PARAMS = "hydra.sweeper.params"


@dataclass(frozen=True)
class Choice:
    """One of some values, each as it is typed in an override."""

    values: tuple[str, ...]

    def ends(self) -> tuple[Value, ...]:
        """Return values that stand for all: here, every one."""
        return self.values

    def parse(self, value: object) -> Value:
        """Return a value given by hand as one of these; ValueError when it is none."""
        if str(value) not in self.values:
            raise ValueError(f"is none of {', '.join(self.values)}.{did_you_mean(str(value), self.values)}")
        return str(value)


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included, in steps or continuous; sampled evenly or by their logarithm."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def ends(self) -> tuple[Value, ...]:
        """Return values that stand for all: the smallest and the largest."""
        return (self.low, self.high)

    def parse(self, value: object) -> Value:
        """Return a value given by hand as one of these; ValueError when it is none."""
        try:
            number = int(str(value)) if self.whole else float(str(value))
        except ValueError:
            raise ValueError(f"is not {'an integer' if self.whole else 'a number'}") from None
        if not self.low <= number <= self.high:
            raise ValueError(f"is not between {self.low} and {self.high}")
        return number


@dataclass(frozen=True)
class Dimension:
    """A key that is varied.

    Args:
        typed: the key as an override has it, with its `+` and package.
        domain: what it may be.
        points: its values in a grid; None where they have no end.
        when: it exists only where other keys have one of these values.
    """

    typed: str
    domain: Choice | Interval
    points: tuple[str, ...] | None
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The key, by which a study knows it."""
        return _bare(self.typed)


@dataclass(frozen=True)
class Space:
    """All that is varied, parents before those that depend on them, and what was typed beside."""

    typed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def domains(self) -> dict[str, Choice | Interval]:
        """What each key may be."""
        return {d.name: d.domain for d in self.dimensions}

    def has(self, dimension: Dimension, values: Mapping[str, Value]) -> bool:
        """Return whether a dimension exists where others have these values."""
        return all(str(values.get(key, self.given.get(key))) in wanted for key, wanted in dimension.when.items())

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """Return the overrides of a point, what was typed among them in its place."""
        typed = {d.name: d.typed for d in self.dimensions}
        rest = dict(values)
        lines = []
        for line in self.typed:
            name = _bare(line.partition("=")[0])
            if name not in typed:
                lines.append(line)
            elif name in rest:
                lines.append(f"{typed[name]}={_text(rest.pop(name))}")
        return [*lines, *(f"{typed[name]}={_text(value)}" for name, value in rest.items())]

    def grid(self) -> Iterator[dict[str, Value]]:
        """Yield every combination.

        Raises:
            UserError: when a dimension has no end of values.
        """
        for dimension in self.dimensions:
            if dimension.points is None:
                raise UserError(
                    f"{dimension.name}: an interval has no end of values: give some, as in `{dimension.name}=1,2`, or "
                    "sample it with hydra/sweeper=optuna"
                )
        yield from self._combinations(0, {})

    def _combinations(self, index: int, values: dict[str, Value]) -> Iterator[dict[str, Value]]:
        if index == len(self.dimensions):
            yield values
            return
        dimension = self.dimensions[index]
        if not self.has(dimension, values):
            yield from self._combinations(index + 1, values)
            return
        for value in dimension.points or ():
            yield from self._combinations(index + 1, {**values, dimension.name: value})

    def samples(self) -> list[dict[str, Value]]:
        """Return a few points among which every choice and both ends of every interval occur."""
        found = [self._point({})]
        for dimension in self.dimensions:
            forced = self._forced(dimension)
            if forced is not None:
                found += [self._point({**forced, dimension.name: value}) for value in dimension.domain.ends()]
        return list({tuple(point.items()): point for point in found}.values())

    def _forced(self, dimension: Dimension) -> dict[str, Value] | None:
        """Return values of parents that make a dimension exist; None when none do."""
        named = {d.name: d for d in self.dimensions}
        forced: dict[str, Value] = {}
        for key, wanted in dimension.when.items():
            if key not in named:
                if self.given.get(key) not in wanted:
                    return None
                continue
            possible = [v for v in wanted if _can_be(named[key].domain, v)]
            above = self._forced(named[key])
            if not possible or above is None:
                return None
            forced |= {**above, key: named[key].domain.parse(possible[0])}
        return forced

    def _point(self, forced: Mapping[str, Value]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for dimension in self.dimensions:
            if self.has(dimension, values):
                values[dimension.name] = forced.get(dimension.name, dimension.domain.ends()[0])
        return values

    def parse(self, point: Mapping[str, object], where: str) -> dict[str, Value]:
        """Return a point given by hand, with values of the right types.

        Raises:
            UserError: when it is not of this space.
        """
        known = {d.name: d for d in self.dimensions}
        found = {}
        for key, value in point.items():
            if (dimension := known.get(key)) is None:
                raise UserError(f"{where}: `{key}` is not varied.{did_you_mean(key, list(known))}")
            try:
                found[key] = dimension.domain.parse(value)
            except ValueError as error:
                raise UserError(f"{where}: `{key}`: {value!r} {error}") from None
        return found


def read_space(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    given: Mapping[str, str],
    loader: ConfigLoader | None = None,
    seed: int = 0,
) -> Space:
    """Read a search space.

    Args:
        arguments: what was typed; what does not vary is the same for all points.
        params: further keys, each with a sweep as it would be typed (`interval(0, 1)`), a list of values, or
            `{space: ..., when: {other key: value or values}}`; what was typed wins.
        given: the values of keys that `when` may name beside those that vary.
        loader: knows the options that `glob` names.
        seed: of `shuffle`.

    Raises:
        UserError: when it cannot be read.
    """
    parser = OverridesParser.create(config_loader=loader)
    typed = parser.parse_overrides(list(arguments))
    for override in typed:
        if override.is_delete() and override.is_sweep_override():
            raise UserError(f"what is deleted cannot be varied: {override.input_line}")
    lines = [o.input_line or "" for o in typed]
    fixed = {
        _bare(o.get_key_element()): str(o.get_value_string())
        for o in typed
        if not o.is_delete() and not o.is_sweep_override()
    }
    dimensions = [_dimension(o, {}, seed) for o in typed if o.is_sweep_override()]
    names = {*fixed, *(d.name for d in dimensions)}
    for key, node in params.items():
        if _bare(key) in names:
            continue
        conditional = isinstance(node, Mapping)
        if conditional and ("space" not in node or set(node) - {"space", "when"}):
            raise UserError(f"{_PARAMS}: `{key}` takes a sweep, a list, or {{space: ..., when: ...}}")
        space, when = (node["space"], node.get("when") or {}) if conditional else (node, {})
        text = f"choice({','.join(map(_text, space))})" if isinstance(space, (list, tuple)) else _text(space)
        try:
            override = parser.parse_override(f"{key}={text}")
        except HydraException as error:
            raise UserError(f"{_PARAMS}: `{key}: {text}` cannot be read: {error}") from None
        conditions = {k: tuple(map(_text, v if isinstance(v, (list, tuple)) else (v,))) for k, v in when.items()}
        dimensions.append(_dimension(override, conditions, seed))
    known = {**given, **fixed}
    return Space(tuple(lines), _parents_first(dimensions, known, set(params) - names), known)


def _dimension(override: Override, when: Mapping[str, tuple[str, ...]], seed: int) -> Dimension:
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        low, high = min(value.start, value.end), max(value.start, value.end)
        whole = isinstance(low, int) or "int" in value.tags
        low, high = (int(low), int(high)) if whole else (low, high)
        if "log" in value.tags and low <= 0:
            raise UserError(f"{key}: a logarithm needs numbers above 0: {override.input_line}")
        return Dimension(key, Interval(low, high, 1 if whole else None, "log" in value.tags, whole), None, when)
    if not override.is_sweep_override():
        values = (override.get_value_string(),)
        return Dimension(key, Choice(values), values, when)
    state = random.getstate()
    random.seed(seed)  # Hydra shuffles with it; a sweep that goes on must find the same order
    points = tuple(map(str, override.sweep_string_iterator()))
    random.setstate(state)
    if not points:
        raise UserError(f"{key}: `{override.input_line}` names nothing")
    if isinstance(value, RangeSweep):
        numbers = [float(p) for p in points]
        whole = isinstance(value.start, int) and isinstance(value.step, int)
        ends = sorted((numbers[0], numbers[-1])) if not value.shuffle else [min(numbers), max(numbers)]
        low, high = (int(ends[0]), int(ends[1])) if whole else (ends[0], ends[1])
        step, log = abs(value.step), "log" in value.tags
        if log and (low <= 0 or step != 1):
            raise UserError(f"{key}: a logarithm needs numbers above 0, and no step: {override.input_line}")
        return Dimension(key, Interval(low, high, step, log, whole), points, when)
    return Dimension(key, Choice(points), points, when)


def _parents_first(
    dimensions: Sequence[Dimension], given: Mapping[str, str], params: Collection[str]
) -> tuple[Dimension, ...]:
    """Order dimensions so that each comes after those it depends on; those in `params` have all their values."""
    named = {d.name: d for d in dimensions}
    for dimension in dimensions:
        for key, wanted in dimension.when.items():
            if key not in named and key not in given:
                hint = did_you_mean(key, [*named, *given])
                raise UserError(f"{_PARAMS}: `{dimension.name}` depends on `{key}`, which nothing sets.{hint}")
            if key in params and isinstance(choice := named[key].domain, Choice) and set(wanted) - set(choice.values):
                odd = ", ".join(sorted(set(wanted) - set(choice.values)))
                raise UserError(
                    f"{_PARAMS}: `{dimension.name}` exists when `{key}` is {odd}, which it never is: "
                    f"{', '.join(choice.values)}"
                )
    ordered: dict[str, Dimension] = {}
    while len(ordered) < len(named):
        ready = [
            d for d in named.values() if d.name not in ordered and all(k in ordered or k not in named for k in d.when)
        ]
        if not ready:
            raise UserError(f"{_PARAMS}: {', '.join(n for n in named if n not in ordered)} depend on each other")
        ordered[ready[0].name] = ready[0]
    return tuple(ordered.values())


def _can_be(domain: Choice | Interval, value: str) -> bool:
    try:
        domain.parse(value)
    except ValueError:
        return False
    return True


def _bare(key: str) -> str:
    return key.lstrip("+~")


def _text(value: object) -> str:
    """Return a value as it is typed in an override."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
