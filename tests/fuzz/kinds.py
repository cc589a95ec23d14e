"""All kinds: importing them registers them."""

from . import (
    kinds_data,
    kinds_files,
    kinds_images,
    kinds_originals,
    kinds_recipes,
    kinds_runs,
    kinds_teachers,
    kinds_words,
)

__all__ = [
    "kinds_data",
    "kinds_files",
    "kinds_images",
    "kinds_originals",
    "kinds_recipes",
    "kinds_runs",
    "kinds_teachers",
    "kinds_words",
]
