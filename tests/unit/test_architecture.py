"""The shape of the code: dependencies point one way; no file, function or argument list grows too long.

One test for each rule: it lists every place that breaks the rule.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import cotune
from cotune.plugins import FOLDERS

ROOT = Path(cotune.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PLUGINS = frozenset(FOLDERS.values()) - {"tasks"}

LAYERS = (
    ("__init__", "__main__"),
    ("cli",),
    ("cli_deploy",),
    ("launch", "launch_audit", "launch_select", "compare", "doctor", "schema", "deployed", "deploy_up"),
    ("deploy", "deploy_party"),
    ("build", "coreset", "audit"),
    ("build_audits", "build_guards", "build_teaching", "fleet"),
    ("build_teacher",),
    ("places", "subject"),
    ("readers", "families", "misfits"),
    ("live", "progress", "report", "page", "map", "waiting"),
    ("selection_page", "teaching_page", "audit_page", "audits_section", "privacy_section"),
    ("tables", "chart", "heat"),
    ("session", "results", "savings", "selection", "allocation", "outcomes", "federation", "spending"),
    ("observing", "gates", "barren"),
    ("changes",),
    ("transports",),
    ("host", "pupils"),
    ("outbox", "under_masks", "parties", "answering", "remote"),
    ("guarded", "masked_gather", "masked_member"),
    ("journal", "endings"),
    ("checkpoint", "cohorts", "masked_terms"),
    ("lessons", "pool_view", "shelf", "audit_prompts"),
    ("evaluate", *sorted(PLUGINS - {"transports"})),
    ("models", "data", "splits", "partition", "sources", "gym", "table", "metrics", "wheels"),
    ("identity_judge", "identity_claims", "identities", "identity_texts", "template_search", "recount"),
    ("answered", "judging", "likeness", "intervals", "cast", "canaries"),
    ("scored", "ranking", "answer_loss", "groups", "choices", "picking", "rewards"),
    ("tasks", "reasoning", "rows"),
    ("config", "mistakes", "overrides", "example_privacy"),
    ("teach_settings", "audit_settings", "endpoint_settings"),
    ("envelope", "plugins", "codec"),
    ("protocols", "pool", "examined", "guarding", "checked"),
    ("noise", "privacy"),
    ("identity_keys",),
    ("secure_client", "secure_server"),
    ("secure_messages",),
    ("fixed_point", "masks", "shamir", "neighbours", "packing", "robust"),
    ("records", "errors", "memory", "scrub", "whole"),
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
    "cryptography": (
        "masks",
        "secure_messages",
        "secure_client",
        "masked_member",
        "identity_keys",
        "build_guards",  # for type checkers only
        "answering",
        "deploy",
        "parties",
        "envelope",
        "remote",
    ),
    "dp_accounting": ("privacy", "example_privacy"),
    "torch": ("models", "losses", "build", "doctor", "records", "strategies"),
    "flwr": ("transports",),
    "datasets": ("sources",),
    "reasoning_gym": ("gym",),
    "typer": ("cli", "cli_deploy"),
    "yaml": ("config", "overrides", "identities"),
    "jinja2": ("report", "map", "audit_page"),
    "rich": (
        "__init__",
        "cli",
        "compare",
        "deployed",
        "launch",
        "launch_audit",
        "launch_select",
        "live",
        "tables",
    ),
}
"""Where a library may be imported; others may be imported anywhere."""
COMMANDS = ("cli", "cli_deploy")
"""Where arguments are options of a command."""
NEVER = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


def room(path: Path) -> str:
    """`models` for models/lora.py, `cli` for cli.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text(path))))


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of everything a file imports, also inside functions."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def told(breaches: Iterable[tuple[Path, str]]) -> list[str]:
    """Every breach of a rule with its file; empty if there is none."""
    return [f"{path.relative_to(ROOT)}: {breach}" for path, breach in breaches]


def test_every_module_has_a_layer():
    known = {name for layer in LAYERS for name in layer}
    assert {room(path) for path in FILES} <= known


def test_dependencies_point_one_way():
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}

    def upward(path: Path) -> Iterator[str]:
        mine = room(path)
        for name in imports(path):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if top != "cotune" or other not in height or other == mine or (mine, other) in ALLOWED:
                continue
            if height[mine] > height[other]:
                yield f"{mine} imports {other}, which stands above it"

    placed = [path for path in FILES if room(path) in height]
    assert not told((path, breach) for path in placed for breach in upward(path))


def test_a_plugin_knows_no_other_plugin():
    def is_of_plugins(path: Path, name: str) -> bool:
        top, second, *_ = *name.split("."), ""
        return second == room(path) or (top == "cotune" and second in PLUGINS)

    plugins = [path for path in FILES if room(path) in PLUGINS]
    assert plugins
    assert not told((path, name) for path in plugins for name in imports(path) if is_of_plugins(path, name))


def test_a_library_is_imported_in_its_room_only():
    def is_fine(path: Path, top: str) -> bool:
        return top not in NEVER and room(path) in ROOMS.get(top, (room(path),))

    tops = [(path, name.split(".")[0]) for path in FILES for name in imports(path)]
    assert not told((path, f"imports {top}") for path, top in tops if not is_fine(path, top))


def test_one_file_knows_flower():
    found = {
        path.relative_to(ROOT).as_posix() for path in FILES for name in imports(path) if name[:5] == "flwr."
    }
    assert found == {"transports/flower.py"}


def test_only_plugins_imports_by_name():
    assert [path.name for path in FILES if "import_module" in text(path)] == ["plugins.py"]


def test_nothing_runs_text():
    def runs(path: Path) -> Iterator[str]:
        called = {n.func.id for n in nodes(path) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        yield from called & {"eval", "exec", "__import__", "compile"}
        yield from (words for words in ("weights_only=False", "shell=True") if words in text(path))

    assert not told((path, breach) for path in FILES for breach in runs(path))


def test_files_functions_and_argument_lists_stay_short():
    def long(path: Path) -> Iterator[str]:
        if len(text(path).splitlines()) > 400:
            yield "has more than 400 lines"
        for node in nodes(path):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (node.end_lineno or 0) - node.lineno >= 60:
                yield f"{node.name} has more than 60 lines"
            if nesting(node) > 3:
                yield f"{node.name} is nested too deep"
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            names = [name for name in names if name not in ("self", "cls", "ctx")]
            if room(path) not in COMMANDS and len(names) > 6:
                yield f"{node.name} has more than 6 arguments"

    assert not told((path, breach) for path in FILES for breach in long(path))


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


def test_no_folder_or_file_has_a_name_that_says_nothing():
    empty = {"utils", "util", "common", "base", "core", "helpers", "misc"}
    assert not [str(path) for path in FILES if empty & {*path.parts[-2:], path.stem}]


def paths_of_the_tree(readme: str) -> Iterator[str]:
    """`src/cotune/`, `src/cotune/cli.py` and so on: an entry belongs to what it is indented under."""
    above: list[str] = []
    for line in readme.split("## Where things are")[1].split("```text\n")[1].split("```")[0].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], line.split()[0]]
        yield "".join(above)


def test_the_tree_in_the_readme_names_every_module_document_and_configuration_once() -> None:
    top = ROOT.parent.parent
    named = Counter(paths_of_the_tree((top / "README.md").read_text(encoding="utf-8")))
    modules = (path for path in FILES if path.name != "__init__.py")
    files = [*modules, *(top / "docs").glob("*.md"), *(top / "configs").glob("*.yaml")]
    folders = [name for name in named if name.endswith("/") and (top / name).is_dir()]
    expected = Counter([*(path.relative_to(top).as_posix() for path in files), *folders])
    assert not sorted(expected - named), "the tree does not name these"
    assert not sorted(named - expected), "the tree names these, which are not there, or names them twice"
