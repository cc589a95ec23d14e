"""Values that others wrote, checked against a pydantic model; what is wrong is said in a line that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from slimdpm.system.errors import SlimdpmError

Model = TypeVar("Model", bound=BaseModel)

# Numbers beyond these are slips of the finger: they would fail late, or fill a memory.
Count = Annotated[int, Field(ge=1, le=10**9)]  # of steps and images
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Batch = Annotated[int, Field(ge=1, le=2**20)]  # images at once
Number = Annotated[float, Field(ge=0, le=1e6)]


class Section(BaseModel):
    """A model that takes nothing which it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4096, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError(f"{str(value).lower()} is neither a number nor text")
        return value


def validated(model: type[Model], values: Any, name: str, hints: Mapping[str, str] | None = None) -> Model:
    """Nested values as a model.

    Args:
        model: what they must be.
        name: how a message begins, for example with the file.
        hints: of a key that is missing, what it is.

    Raises:
        SlimdpmError: with one line about the first thing that is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems: dict[tuple[str, ...], list[Any]] = {}  # a union has one for each of its members
        for problem in error.errors():
            problems.setdefault(tuple(_place(model, problem["loc"])), []).append(problem)
        place, first = next(iter(problems.items()))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SlimdpmError(f"{name}: {_described(model, place, first, hints or {})}{more}") from None


def _place(section: Any, loc: Sequence[str | int]) -> list[str]:
    """Where a problem is: keys, and positions in lists, without pydantic's names for the members of a union."""
    place: list[str] = []
    for part in loc:
        members = {member.__name__: member for member in get_args(section) if isinstance(member, type)}
        if part in members:
            section = members[part]
            continue
        section = _model(section)
        known = isinstance(section, type) and issubclass(section, BaseModel)
        if known or isinstance(part, int):
            place.append(str(part))
        section = section.model_fields[part].annotation if known and part in section.model_fields else None
    return place


def _model(kind: Any) -> Any:
    """The model of a kind of which there is one or none; else the kind."""
    return next(
        (member for member in get_args(kind) if isinstance(member, type) and issubclass(member, BaseModel)), kind
    )


def _described(
    section: Any, place: Sequence[str], problems: Sequence[Mapping[str, Any]], hints: Mapping[str, str]
) -> str:
    """All of pydantic's errors about one key in one line."""
    key, problem = ".".join(place), problems[0]
    if problem["type"] == "extra_forbidden":
        for part in place[:-1]:
            section = _model(section.model_fields[part].annotation)
        close = difflib.get_close_matches(place[-1], section.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(section.model_fields)}"
        return f"unknown key {key}; {hint}"
    if problem["type"] == "missing":
        return f"{key} is missing" + (f": {hints[key]}" if key in hints else "")
    messages = dict.fromkeys(problem["msg"].removeprefix("Value error, ") for problem in problems)
    first, *others = messages
    message = " or ".join([first[0].lower() + first[1:], *(other.removeprefix("Input should be ") for other in others)])
    got = problem["input"]
    return f"{key}: {message}" + ("" if isinstance(got, (dict, list)) else f", got {got!r}")
