"""The shape of the code: dependencies point one way; no file, function or argument list grows too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cotune
from cotune.plugins import FOLDERS

ROOT = Path(cotune.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PLUGINS = frozenset(FOLDERS.values()) - {"tasks"}

LAYERS = (
    ("__init__", "__main__"),
    ("cli",),
    ("launch", "launch_select", "compare", "doctor", "schema"),
    ("build", "coreset"),
    ("build_teaching", "fleet"),
    ("places",),
    ("readers", "families", "misfits"),
    ("live", "progress", "report", "page", "selection_page", "teaching_page", "map"),
    ("tables", "chart", "changes"),
    ("session", "results", "savings", "selection", "allocation", "outcomes", "checkpoint", "federation"),
    ("transports",),
    ("host", "pupils"),
    ("lessons", "pool_view", "shelf"),
    ("evaluate", *sorted(PLUGINS - {"transports"})),
    ("models", "data", "splits", "partition", "sources", "gym", "table", "metrics", "wheels"),
    ("scored", "ranking", "answer_loss", "groups", "choices", "picking", "rewards"),
    ("tasks", "reasoning", "rows"),
    ("config", "mistakes", "overrides", "endpoint_settings", "plugins", "codec"),
    ("protocols", "pool", "examined"),
    ("records", "errors", "memory", "scrub"),
)
"""Top first: a module imports from its own layer or from one below. See docs: dependencies point one way."""

ALLOWED = {
    ("session", "report"),  # a run writes its own files
    ("results", "report"),
    ("protocols", "models"),  # for type checkers only
}
ROOMS = {
    "transformers": ("models",),
    "peft": (),
    "tokenizers": ("models",),
    "huggingface_hub": ("models",),
    "httpx2": ("models",),
    "safetensors": ("models", "codec"),
    "torch": ("models", "losses", "build", "doctor", "records", "strategies"),
    "flwr": ("transports",),
    "datasets": ("sources",),
    "reasoning_gym": ("gym",),
    "typer": ("cli",),
    "yaml": ("config", "overrides"),
    "jinja2": ("report", "map"),
    "rich": ("__init__", "cli", "launch", "launch_select", "compare", "live", "tables"),
}
"""Where a library may be imported; others may be imported anywhere."""
NEVER = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


def room(path: Path) -> str:
    """`models` for models/lora.py, `cli` for cli.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, also inside functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def each(files):
    return pytest.mark.parametrize("path", files, ids=lambda p: str(p.relative_to(ROOT)))


def test_every_module_has_a_layer():
    known = {name for layer in LAYERS for name in layer}
    assert {room(path) for path in FILES} <= known


@each(FILES)
def test_dependencies_point_one_way(path):
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    mine = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "cotune" or len(parts) < 2 or parts[1] not in height or mine == parts[1]:
            continue
        if (mine, parts[1]) not in ALLOWED:
            assert height[mine] <= height[parts[1]], f"{mine} imports {parts[1]}, which stands above it"


@each([path for path in FILES if room(path) in PLUGINS])
def test_a_plugin_knows_no_other_plugin(path):
    for name in imports(path):
        assert name.split(".")[1:2] != [room(path)]
        assert not (name.startswith("cotune.") and name.split(".")[1] in PLUGINS)


@each(FILES)
def test_a_library_is_imported_in_its_room_only(path):
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in NEVER
        assert room(path) in ROOMS.get(top, (room(path),)), f"{room(path)} imports {top}"


@each(FILES)
def test_only_plugins_imports_by_name_and_nothing_runs_text(path):
    text = path.read_text(encoding="utf-8")
    assert ("import_module" in text) == (room(path) == "plugins")
    called = {
        node.func.id
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and hasattr(node.func, "id")
    }
    assert not called & {"eval", "exec", "__import__", "compile"}
    assert "weights_only=False" not in text
    assert "shell=True" not in text


@each(FILES)
def test_files_functions_and_argument_lists_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        where = f"{path.name}: {node.name}"
        assert (node.end_lineno or 0) - node.lineno < 60, where
        assert nesting(node) <= 3, where
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if room(path) != "cli":  # there, arguments are options of a command
            assert len([name for name in names if name not in ("self", "cls", "ctx")]) <= 6, where


BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)


def nesting(node: ast.AST, is_elif: bool = False) -> int:
    """Blocks inside blocks; `elif` is not deeper than its `if`, an inner function begins anew."""
    depths = [0]
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.FunctionDef | ast.ClassDef) or not isinstance(child, ast.AST):
                continue
            chained = name == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If)
            depths.append(nesting(child, chained))
    return max(depths) + (isinstance(node, BLOCKS) and not is_elif)


@each(FILES)
def test_no_folder_or_file_has_a_name_that_says_nothing(path):
    assert not {"utils", "util", "common", "base", "core", "helpers", "misc"} & {*path.parts[-2:], path.stem}


def test_the_tree_in_the_readme_names_every_module_once():
    readme = (ROOT.parent.parent / "README.md").read_text(encoding="utf-8")
    tree_lines = readme.split("```text\nsrc/cotune/")[1].split("```")[0].splitlines()
    named = [line.split()[0] for line in tree_lines if line.startswith("  ") and line[2] != " "]
    top = [name for name in named if name.endswith(".py")]
    assert sorted(top) == sorted(path.name for path in ROOT.glob("*.py") if not path.name.startswith("__"))
