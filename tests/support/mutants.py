"""Seeded mutants of the package: each is one small change of one line, and the tests beside the module have to notice.

    python tests/support/mutants.py --count 120 --seed 0 --out mutants.jsonl

All mutants are tried with the tests of their own module first; then those that are left with the tests of the folder,
the laws and the contract. Results are written one by one, so that a run can be stopped and started again. Exit status
1 when fewer than 95% are noticed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_freeze"
FOLDERS = ("engine", "optim", "callbacks", "schedule", "stages", "model", "trainer", "auditing", "report")
FLOOR = 0.95
_COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}

# (module, part of the line, change) -> why nobody could notice
EQUIVALENT = {
    ("callbacks/rate_growth.py", "slot.names[:1]", "1  ->  2"): "the parameters of a slot have one label",
    ("model/frozen_view.py", "sums = list(", "0  ->  1"): "only differences of the sums count",
    ("model/fingerprint.py", "_CHUNK_ELSEWHERE", "23  ->  24"): "the size of a chunk on a GPU is a matter of speed",
    ("model/undone.py", "strict=True", "True  ->  False"): "the lengths were compared before",
    ("report/table.py", "zip(bound, sizes, ", "True  ->  False"): "both have one entry for each stage",
    ("trainer/lr_finder.py", "strict=True", "True  ->  False"): "an optimizer has as many groups as slots",
}


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one small change, in every way that there is."""
    other = copy.deepcopy(node)
    if isinstance(other, ast.Compare) and type(other.ops[0]) in _COMPARED:
        other.ops[0] = _COMPARED[type(other.ops[0])]()
        yield other
    elif isinstance(other, ast.BinOp) and type(other.op) in _COMPUTED:
        other.op = _COMPUTED[type(other.op)]()
        yield other
    elif isinstance(other, ast.BoolOp):
        other.op = ast.Or() if isinstance(other.op, ast.And) else ast.And()
        yield other
    elif isinstance(other, ast.UnaryOp) and isinstance(other.op, ast.Not):
        yield other.operand
    elif isinstance(other, ast.Constant) and isinstance(other.value, bool):
        yield ast.Constant(not other.value)
    elif isinstance(other, ast.Constant) and isinstance(other.value, int):
        yield ast.Constant(other.value + 1)
    elif isinstance(other, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), other.test), other.body, other.orelse)
    elif isinstance(other, ast.Call) and isinstance(other.func, ast.Name) and other.func.id in _CALLED:
        other.func.id = _CALLED[other.func.id]
        yield other
    elif isinstance(other, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), other.test), other.body, other.orelse)
    elif isinstance(other, ast.Expr | ast.AugAssign | ast.Delete) and not _is_text(other):
        yield ast.Pass()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


Mutant = tuple[Path, int, int]  # module, place of the node in its syntax tree, which of its changes


def mutants_of(module: Path) -> list[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(module.read_text())
    ignored = _signatures(tree)
    nodes = [(place, node) for place, node in enumerate(ast.walk(tree)) if id(node) not in ignored]
    return [(module, place, way) for place, node in nodes for way, _ in enumerate(changed(node))]


def made(mutant: Mutant) -> tuple[int, str, str]:
    """(line, what changed, source of the whole module) of a mutant."""
    module, place, way = mutant
    tree = ast.parse(module.read_text())
    node = list(ast.walk(tree))[place]
    other = list(changed(node))[way]
    change = f"{ast.unparse(node).splitlines()[0]}  ->  {ast.unparse(other).splitlines()[0]}"
    _replace(tree, node, other)
    return getattr(node, "lineno", 0), change, ast.unparse(ast.fix_missing_locations(tree))


def is_equivalent(module: Path, line: int, change: str) -> bool:
    """Whether a mutant is listed as one that changes nothing."""
    name, text = str(module.relative_to(PACKAGE)), module.read_text().splitlines()[line - 1]
    return any((name, change) == (where, how) and part in text for where, part, how in EQUIVALENT)


def _signatures(tree: ast.AST) -> set[int]:
    """Annotations and decorators: no behaviour."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found += [*node.decorator_list, *([node.returns] if node.returns else [])]
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.append(node.annotation)
    return {id(inner) for part in found for inner in ast.walk(part)}


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(item is old for item in value):
                value[:] = [new if item is old else item for item in value]


def own_tests(module: Path) -> list[str]:
    """The tests beside a module."""
    return [str(ROOT / "tests" / module.relative_to(PACKAGE).parent / f"test_{module.stem.lstrip('_')}.py")]


def wide_tests(module: Path) -> list[str]:
    """The tests of its folder, the laws, and what every callback keeps."""
    folders = [module.relative_to(PACKAGE).parent, "laws/test_laws.py", "laws/test_resume.py", "contract"]
    return [str(ROOT / "tests" / folder) for folder in folders]


def notices(tests: list[str], module: Path, source: str, timeout: float) -> bool:
    """Whether tests fail on this source; in a process of its own that has imported torch and Lightning already."""
    with TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder, PACKAGE.name), ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, PACKAGE.name, module.relative_to(PACKAGE)).write_text(source)
        return _fails(tests, folder, timeout)


def _fails(tests: list[str], folder: str, timeout: float) -> bool:
    child = os.fork()
    if child == 0:
        os.setsid()
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", f"--timeout={timeout:g}"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that torchvision has imported already
        os._exit(int(pytest.main([*options, *tests])))
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True  # it hangs, which a person would notice


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the tests of one mutant")
    parser.add_argument("--folders", nargs="*", default=FOLDERS)
    options = parser.parse_args()
    modules = [path for folder in options.folders for path in sorted((PACKAGE / folder).glob("*.py"))]
    everything = [mutant for module in modules for mutant in mutants_of(module)]
    chosen = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {_key(row): row for row in rows}  # of several for one mutant the last
    import lightning.pytorch  # noqa: F401
    import torchvision  # noqa: F401 - so that each mutant starts with these imported

    small = PACKAGE / "optim" / "slots.py"
    assert not notices(own_tests(small), small, small.read_text(), options.timeout), "tests fail without any mutant"
    for tests, name in ((own_tests, "own"), (wide_tests, "wide")):
        for mutant in chosen:
            module, (line, change, source) = mutant[0], made(mutant)
            if is_equivalent(module, line, change):
                continue
            row = {"module": str(module.relative_to(ROOT)), "line": line, "change": change, "by": name}
            before = known.get(_key(row))
            if before is None or (name == "wide" and not before["noticed"] and before["by"] == "own"):
                row["noticed"] = notices(tests(module), module, source, options.timeout)
                known[_key(row)] = row
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{'noticed ' if row['noticed'] else 'SURVIVED'} {row['module']}:{line}  {change}", flush=True)
    share = sum(row["noticed"] for row in known.values()) / len(known)
    print(f"{share:.1%} of {len(known)} mutants are noticed, of {len(everything)} that there are")
    return 0 if share >= FLOOR else 1


def _key(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["module"], row["line"], row["change"]


if __name__ == "__main__":
    sys.exit(main())
