"""Imports go one way: from a stage towards the machine and the pixels, never back."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (  # each may import from itself and from those before it
    ("runtime",),
    ("imaging", "model", "arrays"),
    ("datasets", "preparing", "report"),
    ("inference",),
    ("training", "serve"),
    ("ascend",),
    ("train", "prepare", "evaluate", "upscale", "export", "modelarts_entry_acc",
     "modelarts_entry_perf", "hubconf"),
    ("benchmarks",),
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> Iterator[str]:
    """Yield the project's parts that a file imports, inside functions and for types, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names = [str(getattr(node.args[0], "value", ""))]
        yield from (part for name in names if (part := name.partition(".")[0]) in LEVEL)


def files() -> Iterator[tuple[str, Path]]:
    """Yield each product file with the part that it belongs to."""
    for part in LEVEL:
        folder = ROOT / part
        for path in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
            yield part, path


def test_every_part_has_its_layer() -> None:
    parts = {path.stem for path in ROOT.glob("*.py")} | {
        p.parent.name for p in ROOT.glob("*/__init__.py")
    }
    assert parts == set(LEVEL) - {"benchmarks"}


def test_no_file_imports_from_a_layer_above_or_from_a_neighbour() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {used}"
        for part, path in files()
        for used in imports(path)
        if used != part and LEVEL[used] >= LEVEL[part]
    ]
    assert not wrong
