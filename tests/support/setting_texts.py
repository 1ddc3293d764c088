"""Descriptions of the settings: the docstrings under their fields, read from the source by the tests that need them."""

import ast
import inspect
import textwrap
from itertools import pairwise

from pydantic import BaseModel

from worker.setting_groups import Group
from worker.setting_types import PREFIX
from worker.settings import Settings


def descriptions() -> dict[str, str]:
    """Environment variable -> what settings.py or setting_groups.py says of it."""
    texts = _docstrings(Settings)
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            texts |= {f"{name}_{inner}": text for inner, text in _docstrings(field.annotation).items()}
    return {PREFIX + name.upper(): text for name, text in texts.items()}


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
