"""The table of keys in recipe.md, from the fields of `slimdpm.recipe` and what is said of them there.

python docs/recipe_keys.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from slimdpm.recipe import Recipe
from slimdpm.system.files import write_text

PAGE = Path(__file__).parent / "recipe.md"
BEGIN, END = "<!-- keys -->\n", "<!-- /keys -->\n"


def rows(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """A row for each key."""
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from rows(kind, f"{prefix}{name}.")
            continue
        about, _, default = " ".join((field.description or "").split()).partition("; by default ")
        if not default:
            default = "required" if field.is_required() else _stated(field.default)
        yield f"| `{prefix}{name}` | {default} | {about} |\n"


def _stated(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def page(text: str) -> str:
    """The page with the table of today."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}| key | default | meaning |\n|---|---|---|\n{''.join(rows())}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
