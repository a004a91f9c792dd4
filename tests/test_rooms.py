"""Who may know whom: the import rules of CONTRIBUTING.md."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "lrp"
OPERATIONS = {"graph.ops", "graph.algebra", "graph.capture"}  # what an operation is
VOCABULARY = {
    f"graph.vocabulary.{n}" for n in ("attention", "elementwise", "layers", "movement", "norms", "pools")
}
GRAPH = OPERATIONS | VOCABULARY | {
    "graph.outputs", "graph.signs", "graph.gates", "graph.canonical", "graph.written_out", "graph.folds",
    "graph.rewrites",
    "graph.canonize",
}  # fmt: skip
RULES = {"errors", "structured", "affine", "rules"}
COMPOSITES = {"predicates", "composite", "presets"}
ENGINE = (
    RULES
    | COMPOSITES
    | GRAPH
    | {"program", "silence", "targets", "ledger", "rules_table", "stamp", "explanation", "explainer"}
)
PICTURES = {"errors", "images", "heatmap", "lettering"}
MODELS = {"models", "preprocessing", "weights", "classes"}
TABLES = {"errors", "predictions", "intervals", "analysis", "comparison"}

MAY_IMPORT = {
    "errors": set(),
    "structured": set(),
    "affine": {"errors", "structured"},
    "rules": RULES,
    "graph.outputs": {"errors"},
    "graph.capture": {"errors", "graph.outputs"},
    "graph.algebra": RULES | {"graph.capture"},
    "graph.ops": RULES | OPERATIONS,
    **dict.fromkeys(VOCABULARY, RULES | OPERATIONS),
    "graph.signs": {"graph.ops"},
    "graph.gates": {"graph.ops"},
    "graph.canonical": OPERATIONS,
    "graph.written_out": OPERATIONS | {"graph.canonical"},
    "graph.folds": OPERATIONS | {"graph.canonical", "graph.vocabulary.norms"},
    "graph.rewrites": OPERATIONS | VOCABULARY | {"graph.canonical", "graph.written_out", "graph.folds"},
    "graph.canonize": GRAPH,
    "predicates": {"errors", "graph.ops"},
    "composite": {"errors", "rules", "predicates", "graph.ops", "graph.canonical"},
    "presets": {"errors", "rules", "predicates", "composite", "graph.ops", "graph.canonical"},
    "silence": RULES | OPERATIONS | {"graph.canonical"},
    "program": RULES | OPERATIONS | {"graph.canonical", "silence"},
    "targets": {"errors", "classes"},
    "ledger": set(),
    "rules_table": {"display", "composite", "rules", "program", "graph.ops", "graph.canonical"},
    "stamp": set(),
    "explanation": {
        "display",
        "errors",
        "ledger",
        "stamp",
        "targets",
        "explainer",
    },  # the last for its type alone
    "display": {"errors", "heatmap", "explanation", "rules_table"},  # these two for their types alone
    "explainer": ENGINE,
    "export": {"errors", "explainer", "ledger", "portable", "targets"},
    "portable": set(),
    "images": {"errors"},
    "lettering": {"errors"},
    "heatmap": {"errors", "lettering"},
    "classes": {"errors"},
    "weights": {"errors", "download"},
    "models": {"errors", "images", *MODELS},
    "check": {"errors", "explainer", "ledger", "zoo", *MODELS},
    "zoo": {"errors"},
    "survey": {"check", "errors", "zoo"},
    "preprocessing": {"errors", "images"},
    "request": {"errors", "classes", "targets"},
    "gallery": {"explainer", "request", "targets", *PICTURES, *MODELS},
    "download": {"errors"},
    "unpack": {"errors", "download"},
    "data": {"errors", "classes"},
    "archives": {"errors", "data", "download", "unpack"},
    "predictions": {"errors"},
    "lock": {"errors", "predictions"},
    "journal": {"errors", "lock", "predictions"},
    "heads": {"errors", "graph.capture", *MODELS},
    "ahead": set(),
    "splits": {"errors", "data", "images", "classes", "intervals"},
    "descent": {"errors"},
    "features": {"ahead", "errors", "data", "images", "lock", "predictions", "preprocessing"},
    "fit_head": {"errors", "descent", "intervals"},
    "fit_all": {"errors", "fit_head", "images", "intervals", "preprocessing", "splits"},
    "training_run": {"errors", "fit_head", "intervals", "lock", "plots", "predictions", "splits", *MODELS},
    "retrain": {
        "errors",
        "data",
        "features",
        "fit_all",
        "fit_head",
        "heads",
        "images",
        "lock",
        "predictions",
        "splits",
        "training_run",
        *MODELS,
    },
    "watch": {"explainer", "contact", *PICTURES, *MODELS},
    "evaluate": {"ahead", "errors", "data", "journal", "predictions", "images", *MODELS},
    "intervals": set(),
    "analysis": TABLES,
    "comparison": TABLES,
    "figures": {"errors"},
    "plots": {"figures", *TABLES},
    "contact": PICTURES,
    "files": {"errors", "predictions"},
    "study": {"contact", "files", "plots", *PICTURES, *TABLES},
    "why": {"gallery", "request", "targets", *PICTURES, *MODELS, *TABLES},
    "report.data": TABLES,
    "report.choose": {"comparison", "predictions"},
    "report.pack": {"heatmap"},
    "report.render": {"errors"},
    "report.explain": {
        "errors",
        "classes",
        "gallery",
        "images",
        "predictions",
        "report.choose",
        "report.pack",
        "why",
    },
    "report.write": {
        "report.explain",
        "files",
        "gallery",
        "images",
        "report.data",
        "report.choose",
        "report.pack",
        "report.render",
        *TABLES,
    },
    "notebook": {"archives", "data", "errors", "evaluate", "figures", "images", "models"},
    "measure": {"errors", "data", "evaluate", "models", *TABLES},
}
WITHOUT_TORCH = {
    *PICTURES, *TABLES, "classes", "data", "download", "unpack", "archives", "journal", "lock", "figures", "plots", "contact",
    "files", "study",
}  # fmt: skip


def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(SOURCE).with_suffix("").parts): p
        for p in SOURCE.rglob("*.py")
        if p.name not in ("__init__.py", "__main__.py")
    }


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(modules of ours, packages of others) that a file imports when it is imported."""
    ours, others = set(), set()
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            inner = name.removeprefix("lrp.")
            if name.startswith("lrp.") and inner in known:
                ours.add(inner)
            elif not name.startswith("lrp") and node.col_offset == 0:
                others.add(name.split(".")[0])
    return ours, others


def test_imports_follow_the_rooms():
    for name, path in modules().items():
        ours, _ = imports(path)
        if name.startswith("cli."):
            continue
        assert name in MAY_IMPORT, f"{path} belongs to no room: add it to CONTRIBUTING.md and here"
        assert ours - {name} <= MAY_IMPORT[name], f"{name} imports {ours - MAY_IMPORT[name]}"


def test_nothing_imports_the_command_line():
    for name, path in modules().items():
        if not name.startswith("cli."):
            assert not any(o.startswith("cli") for o in imports(path)[0]), name


def test_the_picture_side_knows_no_torch():
    for name in WITHOUT_TORCH:
        assert "torch" not in imports(modules()[name])[1], name


def test_only_capture_uses_torch_export():
    users = [n for n, p in modules().items() if "torch.export" in p.read_text() and "import" in p.read_text()]
    importing = [n for n in users if any(
        isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.export")
        for node in ast.walk(ast.parse(modules()[n].read_text()))
    )]  # fmt: skip
    assert importing == ["graph.capture"]
