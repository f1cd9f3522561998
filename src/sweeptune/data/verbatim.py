"""Whether a chat template writes what is said as it is, whatever it is: proved from its syntax tree, or not at all.

Where that is so, two conversations with the same roles differ in their contents only, each in its place, and one of
them tells how all are written. The rules know little and refuse the rest: a content may be written, alone or joined
with other text, and that is all that may be done with it; nothing else may come of it, such as a condition, a filter's
result or a captured text.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from jinja2 import nodes

FILTERS = {"length", "count", "trim", "upper", "lower", "capitalize", "title", "tojson"}
"""What may be done with other values. None gives HTML, which would escape a content that is joined with it:
transformers has put a ``tojson`` of its own, which gives plain text, in the place of jinja's."""
CALLS = {"raise_exception", "strftime_now", "range", "namespace"}
LOOP = {"first", "last", "index", "index0", "revindex", "revindex0", "length"}
PURE = (
    *(nodes.Literal, nodes.BinExpr, nodes.UnaryExpr, nodes.Compare, nodes.Operand),
    *(nodes.Test, nodes.Slice, nodes.Pair, nodes.Keyword),
)
"""Expressions that depend on nothing but what stands in them."""


class Kind(Enum):
    """What a value may hold of the contents."""

    NOTHING = 0
    CONTENT = 1  # one of them, maybe with other text around it
    MESSAGE = 2
    MESSAGES = 3


class Unproven(Exception):
    """Something that the rules do not know."""


def verbatim(template: str) -> bool:
    """Whether a template writes contents as they are, for conversations without tools whose messages hold nothing but
    ``role`` and ``content``.

    Args:
        template: Its text, which transformers can compile.

    Example:
        >>> verbatim("{% for m in messages %}{{ m.content }}{% endfor %}")
        True
        >>> verbatim("{% for m in messages %}{{ m.content | trim }}{% endfor %}")
        False
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: Any = _compile_jinja_template(template).environment
    if environment.autoescape is not False or environment.finalize is not None:
        return False
    proof = _Proof()
    try:
        while True:  # until no name turns out to hold more than was thought: it may be set behind where it is read
            known = dict(proof.names)
            proof.statements(environment.parse(template).body)
            if proof.names == known:
                return True
    except Unproven:
        return False


class _Proof:
    """A walk through a template; a name holds the same kind of value everywhere, wherever it is set."""

    def __init__(self) -> None:
        self.names = {"messages": Kind.MESSAGES}

    def statements(self, body: list[nodes.Node]) -> None:
        for node in body:
            if isinstance(node, nodes.Output):
                for inner in node.nodes:
                    self.text(inner)
            elif isinstance(node, nodes.If):
                self.condition(node.test)
                self.statements([*node.body, *node.elif_, *node.else_])
            elif isinstance(node, nodes.For) and not node.recursive:
                kind = self.kind(node.iter)
                if kind not in (Kind.NOTHING, Kind.MESSAGES):
                    raise Unproven
                self.bind(node.target, Kind.MESSAGE if kind is Kind.MESSAGES else kind)
                if node.test is not None:
                    self.condition(node.test)
                self.statements([*node.body, *node.else_])
            elif isinstance(node, nodes.Assign):
                self.bind(node.target, self.kind(node.node))
            elif not isinstance(node, nodes.Break | nodes.Continue):
                raise Unproven  # macros, blocks, includes and captured text among them

    def bind(self, target: nodes.Node, kind: Kind) -> None:
        if isinstance(target, nodes.Name) and target.name not in ("loop", "self"):
            self.names[target.name] = _either(self.names.get(target.name, Kind.NOTHING), kind)
        elif isinstance(target, nodes.Tuple) and kind is Kind.NOTHING:
            for inner in target.items:
                self.bind(inner, kind)
        elif not isinstance(target, nodes.NSRef) or kind is not Kind.NOTHING:
            raise Unproven

    def text(self, node: nodes.Node) -> Kind:
        """What is written, or joined with what is."""
        kind = self.kind(node)
        if kind not in (Kind.NOTHING, Kind.CONTENT):
            raise Unproven
        return kind

    def condition(self, node: nodes.Node) -> None:
        """What is asked only for whether it is true; of the messages, that is whether there are any."""
        if isinstance(node, nodes.And | nodes.Or):
            self.condition(node.left)
            self.condition(node.right)
        elif isinstance(node, nodes.Not):
            self.condition(node.node)
        elif self.kind(node) not in (Kind.NOTHING, Kind.MESSAGES):
            raise Unproven

    def kind(self, node: nodes.Node) -> Kind:
        if isinstance(node, nodes.Name):
            if node.name in ("loop", "self"):
                raise Unproven
            return self.names.get(node.name, Kind.NOTHING)
        if isinstance(node, nodes.TemplateData):
            return Kind.NOTHING
        if isinstance(node, nodes.Getattr | nodes.Getitem):
            return self.member(node)
        if isinstance(node, nodes.CondExpr):
            self.condition(node.test)
            return _either(self.kind(node.expr1), self.kind(node.expr2) if node.expr2 else Kind.NOTHING)
        if isinstance(node, nodes.Add):
            return _either(self.text(node.left), self.text(node.right))
        if isinstance(node, nodes.Concat):
            joined = [self.text(inner) for inner in node.nodes]
            return Kind.CONTENT if Kind.CONTENT in joined else Kind.NOTHING
        if self.outer(node):
            return Kind.NOTHING
        if not (
            isinstance(node, PURE)
            or (isinstance(node, nodes.Filter) and node.name in FILTERS)
            or (isinstance(node, nodes.Call) and (_name(node.node) in CALLS or isinstance(node.node, nodes.Getattr)))
        ):
            raise Unproven
        for inner in node.iter_child_nodes():
            if self.kind(inner) is not Kind.NOTHING:
                raise Unproven
        return Kind.NOTHING

    def outer(self, node: nodes.Node) -> bool:
        """Whether it asks how many messages there are, or whether one has a key: each has the same two in every row."""
        if isinstance(node, nodes.Filter) and node.name in ("length", "count") and node.node is not None:
            return self.kind(node.node) is Kind.MESSAGES
        if isinstance(node, nodes.Compare) and isinstance(node.expr, nodes.Const) and len(node.ops) == 1:
            return node.ops[0].op in ("in", "notin") and self.kind(node.ops[0].expr) is Kind.MESSAGE
        return False

    def member(self, node: nodes.Getattr | nodes.Getitem) -> Kind:
        arg = nodes.Const(node.attr) if isinstance(node, nodes.Getattr) else node.arg
        key = arg.value if isinstance(arg, nodes.Const) else None
        if _name(node.node) == "loop" and key in LOOP:
            return Kind.NOTHING
        kind = self.kind(node.node)
        if self.kind(arg) is not Kind.NOTHING:
            raise Unproven
        if kind is Kind.NOTHING:
            return kind
        if kind is Kind.MESSAGES and isinstance(node, nodes.Getitem) and not isinstance(key, str):
            return Kind.MESSAGES if isinstance(arg, nodes.Slice) else Kind.MESSAGE
        # A dict's own attributes, such as items, would give all that it holds.
        if kind is Kind.MESSAGE and isinstance(key, str) and not hasattr(dict, key):
            return Kind.CONTENT if key == "content" else Kind.NOTHING
        raise Unproven


def _name(node: nodes.Node) -> str | None:
    return node.name if isinstance(node, nodes.Name) else None


def _either(one: Kind, other: Kind) -> Kind:
    """What holds one or the other."""
    if Kind.NOTHING not in (one, other) and one is not other:
        raise Unproven
    return other if one is Kind.NOTHING else one
