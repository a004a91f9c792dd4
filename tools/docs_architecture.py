"""Draw docs/architecture.svg: the packages of src/lrp in layers, from CONTRIBUTING.md's table and from the imports.

python tools/docs_architecture.py           # writes the picture
python tools/docs_architecture.py --check   # exit 1 where it is out of date
"""

import argparse
import ast
import re
import sys
import textwrap
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lrp"
PICTURE = ROOT / "docs" / "architecture.svg"


@dataclass
class Component:
    """A package of lrp, or a module at the same level."""

    name: str
    holds: str  # the description in CONTRIBUTING.md
    package: bool
    modules: int
    lines: int
    imports: set[str]


# ---------------------------------------------------------------- reading the packages


def components(contributing: str, source: Path = SOURCE) -> dict[str, Component]:
    """Every row of CONTRIBUTING.md's first table, with what its files import."""
    table = contributing.partition("| package |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, flags=re.MULTILINE))
    found = {}
    for name, holds in rows.items():
        package = (source / name).is_dir()
        files = sorted((source / name).rglob("*.py")) if package else [source / f"{name}.py"]
        texts = [path.read_text(encoding="utf-8") for path in files]
        imports = set().union(*(imported(text) for text in texts)) & rows.keys() - {name}
        modules = sum(path.name != "__init__.py" for path in files)
        found[name] = Component(
            name,
            holds.partition(";")[0].strip().replace("`", ""),
            package,
            modules,
            sum(t.count("\n") for t in texts),
            imports,
        )
    return found


def imported(text: str) -> set[str]:
    """The packages and modules of `lrp` that a module imports, anywhere in it; without imports only for types."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name}" for name in names]
        found |= {name.split(".")[1] for name in names if name.startswith("lrp.")}
    return found


# ---------------------------------------------------------------- layers


@dataclass
class Layout:
    """Layers from bottom to top, each from left to right; an arrow that crosses a layer has a bend in it."""

    layers: list[list[str]]
    arrows: list[list[str]]  # from the importing component down, through its bends, to the imported one
    also: dict[str, list[str]]  # imports without an arrow, because arrows over other components imply them
    bends: set[str] = field(default_factory=set)


def layout(components: dict[str, Component]) -> Layout:
    """Each component is one layer above the highest one that it imports; no arrow if a longer path implies it."""
    reach: dict[str, set[str]] = {}

    def below(name: str) -> set[str]:
        if name not in reach:
            inside = components[name].imports & components.keys()
            reach[name] = inside.union(*(below(other) for other in inside))
        return reach[name]

    direct, also = {}, {}
    for name, component in components.items():
        inside = component.imports & components.keys()
        direct[name] = sorted(o for o in inside if not any(o in below(other) for other in inside))
        also[name] = sorted(inside - set(direct[name]))
    level: dict[str, int] = {}
    for name in sorted(components, key=lambda name: len(below(name))):
        level[name] = 1 + max((level[other] for other in direct[name]), default=-1)
    result = Layout([[] for _ in range(1 + max(level.values()))], [], also)
    for name in components:
        result.layers[level[name]].append(name)
    for name in components:
        for other in direct[name]:
            bends = [f"{name}>{other}@{n}" for n in range(level[name] - 1, level[other], -1)]
            for bend in bends:
                result.layers[int(bend.rpartition("@")[2])].append(bend)
            result.bends.update(bends)
            result.arrows.append([name, *bends, other])
    _untangle(result)
    return result


def _untangle(result: Layout) -> None:
    """Sort each layer by the positions that its arrows connect to; keep the order with the fewest crossings."""
    hops = [hop for arrow in result.arrows for hop in pairwise(arrow)]
    best, kept = crossings(result.layers, hops), [list(layer) for layer in result.layers]
    for sweep in range(24):
        order = range(len(result.layers)) if sweep % 2 else reversed(range(len(result.layers)))
        for number in order:
            place = {n: (i + 0.5) / len(layer) for layer in result.layers for i, n in enumerate(layer)}
            near = {
                n: [place[b if n == a else a] for a, b in hops if n in (a, b)] for n in result.layers[number]
            }
            result.layers[number].sort(key=lambda n: sum(near[n]) / len(near[n]) if near[n] else place[n])
        if (count := crossings(result.layers, hops)) < best:
            best, kept = count, [list(layer) for layer in result.layers]
    result.layers = kept


def crossings(layers: list[list[str]], hops: list[tuple[str, str]]) -> int:
    place = {name: (number, i) for number, layer in enumerate(layers) for i, name in enumerate(layer)}
    ends = [(place[a][0], place[a][1], place[b][1]) for a, b in hops]
    return sum(
        l1 == l2 and (a1 - a2) * (b1 - b2) < 0
        for i, (l1, a1, b1) in enumerate(ends)
        for l2, a2, b2 in ends[:i]
    )


# ---------------------------------------------------------------- the picture

WIDTH, MARGIN, BOX, BEND, BETWEEN, ROW = 940, 24, 252, 28, 26, 64
STYLE = """
  .page { fill: #fbfbfa; } .box { fill: #ffffff; stroke: #8a949e; } .base { fill: #eef1f4; stroke: #b6bec6; }
  text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #33393f; }
  .name { font: bold 16px ui-monospace, "DejaVu Sans Mono", monospace; fill: #15191d; }
  .size, .also { font-size: 12px; fill: #5c656e; } .arrow { fill: none; stroke: #5b7f95; stroke-width: 1.6; }
  #tip path { fill: #5b7f95; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1d2126; } .box { fill: #2a3037; stroke: #76818c; } .base { fill: #23282e; stroke: #515b65; }
    text { fill: #d5dade; } .name { fill: #ffffff; } .size, .also { fill: #a5aeb7; }
    .arrow { stroke: #86b3cd; } #tip path { fill: #86b3cd; }
  }
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{of_kind}>{escape(words)}</text>'


def size(component: Component) -> str:
    """The size with two significant digits, so that the picture is not out of date after every commit."""
    unit = 10 ** max(0, len(str(component.lines)) - 2)
    lines = f"about {round(component.lines / unit) * unit:,} lines"
    return f"{component.modules} modules, {lines}" if component.package else lines


def body(component: Component, also: list[str]) -> list[tuple[str, str]]:
    """(text, CSS class) of the lines below a component's name."""
    lines = [(line, "") for line in textwrap.wrap(component.holds, 32)]
    lines += [(line, "also") for line in textwrap.wrap(f"also imports {', '.join(also)}", 36)] if also else []
    return [*lines, (size(component), "size")]


def bar(components: list[Component], top: float, words: str) -> tuple[list[str], float]:
    """A layer without arrows: its components side by side in one wide box."""
    inner = (WIDTH - 2 * MARGIN) / len(components)
    cells = [textwrap.wrap(component.holds, int(inner / 7.6)) for component in components]
    height = 62 + 17 * max(map(len, cells)) + 20
    parts = [
        f'<rect class="base" x="{MARGIN}" y="{top:.0f}" width="{WIDTH - 2 * MARGIN}" height="{height}" rx="8"/>',
        text(MARGIN + 14, top + 22, words, "also"),
    ]
    for i, (component, lines) in enumerate(zip(components, cells, strict=True)):
        x = MARGIN + 14 + i * inner
        parts.append(text(x, top + 46, component.name, "name"))
        parts += [text(x, top + 66 + 17 * n, line) for n, line in enumerate(lines)]
        parts.append(text(x, top + 66 + 17 * len(lines), size(component), "size"))
    return parts, top + height


def draw(components: dict[str, Component]) -> str:
    """The picture as SVG: the command line at the top, modules that all may import at the bottom, arrows in between."""
    base = [
        r for r in components.values() if not r.package and not any(components[n].package for n in r.imports)
    ]
    middle = {
        name: component for name, component in components.items() if name != "cli" and component not in base
    }
    plan = layout(middle)
    parts, y = bar([components["cli"]], MARGIN, "imports all that is below; nothing imports it")
    y += 30
    places: dict[str, tuple[float, float, float, float]] = {}  # x of the middle, top, bottom, width
    for layer in reversed(plan.layers):
        widths = [BEND if n in plan.bends else BOX for n in layer]
        tall = max(44 + 17 * len(body(middle[n], plan.also[n])) for n in layer if n not in plan.bends)
        x = (WIDTH - sum(widths) - BETWEEN * (len(layer) - 1)) / 2
        for name, width in zip(layer, widths, strict=True):
            places[name] = (x + width / 2, y, y + tall, width)
            x += width + BETWEEN
        y += tall + ROW
    ports = _ports(plan, places)
    parts += [_curve(arrow, places, ports) for arrow in plan.arrows]
    for name, component in middle.items():
        x, y0, y1, width = places[name]
        parts.append(
            f'<rect class="box" x="{x - width / 2:.0f}" y="{y0:.0f}" width="{width}" height="{y1 - y0:.0f}" rx="8"/>'
        )
        parts.append(text(x - width / 2 + 14, y0 + 26, name, "name"))
        for n, (words, kind) in enumerate(body(component, plan.also[name])):
            parts.append(text(x - width / 2 + 14, y0 + 47 + 17 * n, words, kind))
    y += 30 - ROW
    more, y = bar(base, y, "imported by all that is above, as CONTRIBUTING.md allows")
    height = y + MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img">',
        "<title>The packages of lrp in layers, and which imports which</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 1 10 5 0 9z"/></marker></defs>',
        f'<rect class="page" width="{WIDTH}" height="{height:.0f}" rx="12"/>',
        *parts, *more, "</svg>", "",
    ])  # fmt: skip


def _ports(
    plan: Layout, places: dict[str, tuple[float, float, float, float]]
) -> dict[tuple[str, str], float]:
    """Start and end points of arrows at a box: side by side, sorted by the position of their other end."""
    found = {}
    for name in places:
        if name in plan.bends:
            continue
        x, _, _, width = places[name]
        for ends in (
            sorted((places[a[1]][0], a[-1]) for a in plan.arrows if a[0] == name),
            sorted((places[a[-2]][0], a[0]) for a in plan.arrows if a[-1] == name),
        ):
            for i, (_, other) in enumerate(ends):
                found[name, other] = x + width * 0.7 * ((i + 0.5) / len(ends) - 0.5)
    return found


def _curve(
    arrow: list[str],
    places: dict[str, tuple[float, float, float, float]],
    ports: dict[tuple[str, str], float],
) -> str:
    first, *bends, last = arrow
    x, y = ports[first, last], places[first][2]
    path = f"M{x:.0f} {y:.0f}"
    for name in bends:
        to, top, bottom, _ = places[name]
        path += f" C{x:.0f} {y + 40:.0f} {to:.0f} {top - 40:.0f} {to:.0f} {top:.0f} V{bottom:.0f}"
        x, y = to, bottom
    to, top = ports[last, first], places[last][1]
    return f'<path class="arrow" marker-end="url(#tip)" d="{path} C{x:.0f} {y + 32:.0f} {to:.0f} {top - 32:.0f} {to:.0f} {top:.0f}"/>'


# ---------------------------------------------------------------- up to date or not

LINES = re.compile(r"about ([\d,]+) lines")


def same(old: str, new: str) -> bool:
    """Equal except for the numbers of lines, which may differ by a fifth."""
    numbers = [[int(n.replace(",", "")) for n in LINES.findall(picture)] for picture in (old, new)]
    return LINES.sub("", old) == LINES.sub("", new) and all(
        abs(a - b) <= max(a, b) / 5 for a, b in zip(*numbers, strict=True)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is out of date")
    check = parser.parse_args(arguments).check
    picture = draw(components((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    if not check:
        PICTURE.write_text(picture, encoding="utf-8")
    elif not same(PICTURE.read_text(encoding="utf-8") if PICTURE.exists() else "", picture):
        print("docs/architecture.svg is out of date: python tools/docs_architecture.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
