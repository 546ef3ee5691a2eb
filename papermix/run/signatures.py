"""What a dotted name takes, read from its source without importing it: a wrong key is refused before torch is loaded."""

import ast
import copy
import importlib.util
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

# the name of the type hint of a part of training, a fraction or words (papermix.optimizers.schedules), and the words
_LENGTH = "Length"
_IN_WORDS = re.compile(r"\s*(\d+\.?\d*|\.\d+) ?(step|epoch)s?\s*")
# packages whose names for types (``Cancel = Literal[...]``) are looked up
_OWN = ("papermix", "lightning_modules", "datamodules", "callbacks")


@dataclass
class Signature:
    """Parameters of a class or function.

    Attributes:
        annotations: name -> the source expression of its type hint (None where there is none), ``self`` left out.
        required: names without a default.
        open: whether it also takes keywords that stand nowhere in its source (``**kwargs``).
    """

    annotations: dict[str, ast.expr | None] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    open: bool = False


@cache
def _source(module: str) -> tuple[ast.Module, bool] | None:
    """The parsed file of a module, and whether it is a package; None if there is no such module of Python source."""
    head, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(head)  # a top-level name: nothing is executed
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    for i, part in enumerate(rest):
        folder = path.parent
        package, file = folder / part / "__init__.py", folder / f"{part}.py"
        if package.is_file():
            path = package
        elif file.is_file() and i == len(rest) - 1:
            path = file
        else:
            return None
    return ast.parse(path.read_text(encoding="utf-8")), path.name == "__init__.py"


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join(parts + ([node.module] if node.module else []))


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements at a module's top level, those inside if/try blocks included."""
    out: list[ast.stmt] = []
    for node in body:
        out.append(node)
        if isinstance(node, ast.If | ast.Try):
            out += _statements(node.body + node.orelse)
    return out


@cache
def locate(target: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """Find the class or function that ``target`` names, following re-exports; returns (its module, its node) or None."""
    module, _, name = target.rpartition(".")
    if not module:
        return None
    source = _source(module)
    if source is None:
        return None
    tree, is_package = source
    stars = []
    for node in reversed(_statements(tree.body)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return locate(f"{_absolute(module, is_package, node)}.{alias.name}")
                if alias.name == "*":
                    stars.append(_absolute(module, is_package, node))
    return next((found for star in stars if star != module and (found := locate(f"{star}.{name}"))), None)


def names_in(module: str) -> list[str]:
    """Public classes and functions that stand in a module (none if it cannot be read)."""
    source = _source(module)
    if source is None:
        return []
    names = []
    for node in _statements(source[0].body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [a.asname or a.name for a in node.names]
    return [n for n in names if not n.startswith("_")]


@cache
def _alias(module: str, name: str) -> ast.expr | None:
    """What a module's ``name = Literal[...]`` (or ``X | Y``, ``Optional[...]``) stands for, imports followed; else None."""
    source = _source(module)
    if source is None:
        return None
    for node in _statements(source[0].body):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            if any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
                return _Expanded(module).visit(copy.deepcopy(node.value))
        if isinstance(node, ast.ImportFrom) and module.split(".")[0] in _OWN:
            for alias in node.names:
                home = _absolute(module, source[1], node)
                if (alias.asname or alias.name) == name and home.split(".")[0] in _OWN:
                    return _alias(home, alias.name)
    return None


class _Expanded(ast.NodeTransformer):
    """Puts what a name stands for in the place of the name."""

    def __init__(self, module: str) -> None:
        self.module = module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return (node.id != _LENGTH and _alias(self.module, node.id)) or node


def _hint(annotation: ast.expr | None, module: str) -> ast.expr | None:
    return annotation and _Expanded(module).visit(copy.deepcopy(annotation))


def _of_function(node: ast.FunctionDef, skip: int, module: str) -> Signature:
    args = node.args
    positional = (args.posonlyargs + args.args)[skip:]
    out = Signature({a.arg: _hint(a.annotation, module) for a in positional + args.kwonlyargs}, open=args.kwarg is not None)
    with_default = len(args.defaults)
    out.required = {a.arg for a in positional[: max(0, len(positional) - with_default)]}
    out.required |= {a.arg for a, d in zip(args.kwonlyargs, args.kw_defaults) if d is None}
    return out


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(d).split("(")[0].rsplit(".", 1)[-1] == "dataclass" for d in node.decorator_list)


@cache
def signature(target: str) -> Signature | None:
    """Parameters of the class or function ``target``; None when its source cannot be found (nothing is then checked).

    A class that passes ``**kwargs`` on also takes what its bases take.
    """
    found = locate(target)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, 0, module)
    own = None
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            own = _of_function(item, 1, module)
    if own is None and _is_dataclass(node):
        own = Signature()
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                own.annotations[item.target.id] = _hint(item.annotation, module)
                if item.value is None:
                    own.required.add(item.target.id)
        return own
    if own is not None and not own.open:
        return own
    bases = [b for b in node.bases if not isinstance(b, ast.Subscript)]
    inherited = [signature(f"{module}.{ast.unparse(b)}") for b in bases]
    if own is None:
        return inherited[0] if inherited else Signature()
    # what a class gives its base itself, nobody else may give
    fixed = _given_to_base(node) - own.annotations.keys()
    merged = Signature(dict(own.annotations), set(own.required), open=not bases or any(s is None or s.open for s in inherited))
    for base in inherited:
        if base is not None:
            merged.annotations = {k: v for k, v in base.annotations.items() if k not in fixed} | merged.annotations
            merged.required |= base.required - own.annotations.keys() - fixed
    return merged


def _given_to_base(node: ast.ClassDef) -> set[str]:
    """Keywords of the call ``super().__init__(...)`` in a class."""
    calls = (n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == "super().__init__")
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "list": (list,),
    "tuple": (list,),
    "Sequence": (list,),
    "Iterable": (list,),
    "dict": (dict,),
    "Mapping": (dict,),
    "None": (type(None),),
    "Path": (str,),
    "Tensor": (),  # never in a config
}


def accepts(annotation: ast.expr | None, value: object) -> str | None:
    """None if ``value`` (from YAML) may go where the type hint stands, else the hint in words. Unknown hints accept all."""
    if annotation is None:
        return None
    if ast.unparse(annotation) == _LENGTH:
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        fits = _IN_WORDS.fullmatch(value) if isinstance(value, str) else number
        return None if fits else "a fraction (0 to 1), or a length like '5 epochs' or '500 steps'"
    alternatives = _alternatives(annotation)
    if alternatives is None:
        return None
    for allowed, literals in alternatives:
        if literals is not None:
            if value in literals and type(value) in {type(x) for x in literals}:
                return None
        elif isinstance(value, bool):
            if bool in allowed:
                return None
        elif isinstance(value, allowed):
            return None
    words = ast.unparse(_Plainly().visit(copy.deepcopy(annotation)))
    return words.replace(" | ", " or ").replace("None", "null")


class _Plainly(ast.NodeTransformer):
    """``Literal['a', 'b']`` as ``a | b``, ``Optional[X]`` as ``X | None``: how one would say it."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        head = ast.unparse(node.value).rsplit(".", 1)[-1]
        if head == "Optional":
            return ast.Name(f"{ast.unparse(self.visit(node.slice))} | None")
        if head == "Literal":
            elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return ast.Name(" | ".join(str(e.value) if isinstance(e, ast.Constant) else ast.unparse(e) for e in elements))
        return node


def literals(annotation: ast.expr | None) -> tuple[str, ...]:
    """The strings that a type hint allows (``Literal['a', 'b'] | int`` gives a and b); none when it takes any string."""
    alternatives = _alternatives(annotation) if annotation is not None else None
    if alternatives is None or any(str in types for types, names in alternatives if names is None):
        return ()
    return tuple(str(name) for _, names in alternatives for name in names or () if isinstance(name, str))


def _alternatives(node: ast.expr) -> list[tuple[tuple[type, ...], list | None]] | None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _alternatives(node.left), _alternatives(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.Constant):
        if node.value is None:
            return [((type(None),), None)]
        return None  # a hint written as a string
    if isinstance(node, ast.Subscript):
        head = ast.unparse(node.value).rsplit(".", 1)[-1]
        if head == "Literal":
            elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return [((), [e.value for e in elements if isinstance(e, ast.Constant)])]
        if head == "Optional":
            inner = _alternatives(node.slice)
            return None if inner is None else [*inner, ((type(None),), None)]
        if head == "Union" and isinstance(node.slice, ast.Tuple):
            parts = [_alternatives(e) for e in node.slice.elts]
            return None if any(p is None for p in parts) else [a for p in parts if p for a in p]
        return [(_TYPES[head], None)] if head in _TYPES else None
    name = ast.unparse(node).rsplit(".", 1)[-1]
    return [(_TYPES[name], None)] if name in _TYPES else None
