"""What imports what, how large files and functions are, and what `import mi_ablate` loads: read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "mi_ablate"
FILES = sorted(SOURCE.rglob("*.py"))

ORDER = (
    ("_types",),
    ("_files",),
    ("subspace",),
    ("design",),
    ("regression",),
    ("_positions",),
    ("_broadcast",),
    ("_placed",),
    ("_erase",),
    ("interventions",),
    ("gates",),
    ("_names",),
    ("_attach",),
    ("model",),
    ("layers",),
    ("moments",),
    ("metrics",),
    ("controls",),
    ("overlap",),
    ("replay",),
    ("effects",),
    ("_norms",),
    ("_walks",),
    ("curves",),
    ("_shares",),
    ("_places",),
    ("patching", "selectivity"),
    ("dormancy",),
    ("_writers",),
    ("weights",),
    ("store",),
    ("find",),
    ("_scores",),
    ("_judging",),
    ("choosing",),
    ("_tuning_space",),
    ("_search",),
    ("tuning",),
    ("others",),
    ("modular",),
    ("methods",),
    ("_shipped",),
    ("adders", "contrasts", "diaries"),
    ("toys",),
    ("loading",),
    ("_prompt_files",),
    ("prompts",),
    ("generation",),
    ("_model_card",),
    ("export",),
    ("applied",),
    ("_parts",),
    ("explained",),
    ("shown",),
    ("_drawn",),
    ("looking",),
    ("arithmetic",),
    ("figures",),
    ("measures",),
    ("sweep",),
    ("published",),
    ("_page",),
    ("report",),
    ("studies",),
    ("demo", "fourier_analysis", "helix_analysis", "attention_view", "abliteration"),
    ("clock_analysis",),
    ("cli",),
)
"""A module imports only from those in earlier rows (and, inside a package, from its own)."""
RANK = {module: i for i, row in enumerate(ORDER) for module in row}
DRAWING = ("plot", "_repr_html_")
"""Methods that may import figures, further down: a picture is drawn when asked for."""

LONG_FILES: dict[str, int] = {}
"""Files above 300 lines, with a bound that they must not outgrow; an entry that is no longer needed fails."""
LONG_FUNCTIONS: dict[str, int] = {}
"""Functions above 60 lines (docstring included)."""
SHARED_NAMES: set[str] = set()
"""Modules that share their name with a public function of their package."""


def module_of(path: Path) -> str:
    """The top-level module or package that a file belongs to: "model" or "toys"."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, path: Path, skip: tuple[str, ...] = ()) -> set[str]:
    """Top-level modules of this package that the file imports anywhere, except inside functions named in ``skip``."""
    found: set[str] = set()
    package = ("mi_ablate", *path.relative_to(SOURCE).parts[:-1])
    queue = list(ast.iter_child_nodes(tree))
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef) and node.name in skip:
            continue
        queue += ast.iter_child_nodes(node)
        full: list[str] = []
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            full = [f"{stem}.{alias.name}" for alias in node.names]
        for name in full:
            parts = name.split(".")
            if parts[0] == "mi_ablate" and len(parts) > 1:
                found.add(parts[1])
    return found & set(RANK) | {name for name in found if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    me = module_of(path)
    if me == "__init__":
        assert imports(ast.parse(path.read_text()), path) == set(), (
            "the package's __init__ imports names when first used"
        )
        return
    assert me in RANK, f"{me} has no place in the order yet: add it to ORDER where it belongs"
    upward = {name for name in imports(ast.parse(path.read_text()), path, skip=DRAWING) if name != me}
    wrong = {name for name in upward if RANK[name] >= RANK[me]}
    assert not wrong, f"{me} imports {wrong}, which come after it"


def test_the_order_check_sees_every_form_of_import() -> None:
    for text in (
        "from mi_ablate.effects import effect",
        "from mi_ablate import effects",
        "import mi_ablate.effects",
        "from .effects import effect",
        "from . import effects",
        "def f():\n    from mi_ablate.effects import effect",
        "class A:\n    def plot(self): ...\n    def other(self):\n        from .effects import effect",
    ):
        assert imports(ast.parse(text), SOURCE / "model.py") == {"effects"}, text
    assert imports(ast.parse("from ..effects import effect"), SOURCE / "toys" / "train.py") == {"effects"}
    assert imports(ast.parse("from .tasks import effects"), SOURCE / "toys" / "train.py") == {"toys"}
    drawing = "class A:\n    def plot(self):\n        from mi_ablate.figures import removal"
    assert imports(ast.parse(drawing), SOURCE / "effects.py", skip=DRAWING) == set()
    assert imports(ast.parse(drawing), SOURCE / "effects.py") == {"figures"}


@pytest.mark.parametrize("package", sorted({p.parent for p in FILES if p.parent != SOURCE}), ids=lambda p: p.name)
def test_no_circles_inside_a_package(package: Path) -> None:
    edges: dict[str, set[str]] = {}
    for path in package.glob("*.py"):
        if path.stem == "__init__":
            continue
        tree, found = ast.parse(path.read_text()), set()
        for node in tree.body:  # at import time; a function may import later
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names} | set((node.module or "").split("."))
                found |= {name for name in names if (package / f"{name}.py").is_file()}
        edges[path.stem] = found - {path.stem}
    while edges:
        free = {name for name, needs in edges.items() if not needs & set(edges)}
        assert free, f"a circle among {sorted(edges)}"
        edges = {name: needs for name, needs in edges.items() if name not in free}


def run_python(code: str) -> str:
    """The output of a fresh interpreter, one torch thread, with this one's path."""
    paths = [str(SOURCE.parent), *[p for p in sys.path if p]]
    code = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = (
    "transformer_lens",
    "transformers",
    "plotly",
    "circuitsvis",
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
    "typer",
    "ray",
)
LOADED = f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"


@pytest.mark.compat
def test_import_loads_neither_transformer_lens_nor_a_plotting_library() -> None:
    assert run_python(f"import mi_ablate\n{LOADED}").strip() == "[]"


@pytest.mark.compat
def test_the_core_works_without_them_too() -> None:
    code = """
import torch, mi_ablate as mi
s = mi.fit(torch.randn(20, 4), mi.fourier(range(20), 5, [1])).subspace()
mi.Ablate(s)(torch.randn(2, 4))
for name in ("effect", "removal_curve", "collect", "attached", "save", "bake_", "metrics", "controls"):
    getattr(mi, name)
"""
    assert run_python(code + LOADED).strip() == "[]"


def test_the_import_test_can_fail() -> None:
    assert run_python(f"import mi_ablate, plotly\n{LOADED}").strip() == "['plotly']"
    assert "scipy" in run_python(f"import mi_ablate as mi\nmi.interval([0.0, 1.0])\n{LOADED}")


@pytest.mark.compat
def test_every_public_name_resolves() -> None:
    code = "import mi_ablate as mi\nmissing = []\nfor name in mi.__all__:\n    try:\n        getattr(mi, name)\n"
    code += (
        "    except (ImportError, AttributeError) as error:\n        missing.append((name, str(error)))\nprint(missing)"
    )
    assert run_python(code).strip() == "[]"


def test_importing_changes_no_global_state() -> None:
    code = """
import random, torch
before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(), random.getstate(), torch.get_num_threads())
import mi_ablate.effects, mi_ablate.store, mi_ablate.toys
after = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(), random.getstate(), torch.get_num_threads())
print(before == after)
"""
    assert run_python(code).strip() == "True"


def test_no_module_has_the_name_of_a_public_function_or_of_the_standard_library() -> None:
    import mi_ablate

    for path in FILES:
        if path.stem == "__init__":
            continue
        where = str(path.relative_to(SOURCE))
        init = path.parent / "__init__.py"
        public = set(mi_ablate._NAMES) if path.parent == SOURCE else public_names(init)
        assert (path.stem in public) == (where in SHARED_NAMES), where
        assert path.parent != SOURCE or path.stem not in sys.stdlib_module_names, where


def public_names(init: Path) -> set[str]:
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("__all__", "_NAMES"):
            return set(ast.literal_eval(node.value))
    return set()


def functions(path: Path) -> dict[str, int]:
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{path.relative_to(SOURCE)}:{node.name}"
            found[name] = max(found.get(name, 0), node.end_lineno - node.lineno + 1)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    where, lines = str(path.relative_to(SOURCE)), len(path.read_text().splitlines())
    assert (lines > 300) == (where in LONG_FILES), f"{where} has {lines} lines"
    assert lines <= LONG_FILES.get(where, 300)
    for name, length in functions(path).items():
        assert (length >= 60) == (name in LONG_FUNCTIONS), f"{name} has {length} lines"
        assert length <= LONG_FUNCTIONS.get(name, 60)


def test_the_exceptions_still_exist() -> None:
    names = {str(path.relative_to(SOURCE)) for path in FILES}
    assert set(LONG_FILES) | SHARED_NAMES <= names
    assert set(LONG_FUNCTIONS) <= {name for path in FILES for name in functions(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_house_rules(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: errors for users are ValueError or KeyError"
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "annotations are checked at run time in the tests"
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            mutable = [
                d for d in node.args.defaults + node.args.kw_defaults if isinstance(d, (ast.List, ast.Dict, ast.Set))
            ]
            assert not mutable, f"line {node.lineno}: a mutable default"
    if path.stem != "__init__" or tree.body:
        assert ast.get_docstring(tree), "every module says what it is"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_transformer_lens_is_imported_inside_functions_and_its_classes_are_not_asked_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            allowed = {"typer"} if path.parent.name == "cli" else set()
            assert not {name.split(".")[0] for name in names} & (set(HEAVY) - allowed), f"line {node.lineno}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            assert "Hooked" not in ast.dump(node.args[1]), f"line {node.lineno}: speak the protocol, never isinstance"
            assert "Bridge" not in ast.dump(node.args[1]), f"line {node.lineno}"
        if isinstance(node, ast.ClassDef):
            bases = " ".join(ast.dump(base) for base in node.bases)
            assert "HookedTransformer" not in bases
            assert "HookedRootModule" not in bases
