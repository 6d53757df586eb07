"""The process in which chat templates run: one request a line in, one answer a line out, as JSON.

A template is a stranger's program. Jinja's sandbox keeps it from files and from Python's insides; the limits
here keep it from time and memory, in whatever single call it may try to spend them: the system itself ends
this process when the alarm rings. It is started as a script, imports nothing of byhand, and sees only JSON.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any


class RefusalError(Exception):
    """What a template says with raise_exception()."""


class TooLargeError(Exception):
    """More text than a prompt can be."""


def raise_exception(message: object) -> None:
    """The template's own way to refuse messages."""
    raise RefusalError(str(message)[:300])


def strftime_now(pattern: str) -> str:
    """The local date and time."""
    return datetime.now().strftime(pattern)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter would escape < and & for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment(largest: int) -> Any:
    """The sandboxed, immutable environment with what transformers gives its chat templates."""
    from jinja2 import nodes, pass_eval_context
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %}: marks what the assistant says, for training; here it only gives out its body."""

        tags = {"generation"}  # noqa: RUF012 - a class variable of Jinja's

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        @pass_eval_context
        def _body(self, context: Any, caller: Callable[[], str]) -> str:
            return caller()

    def check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no attribute {name!r}")

    class PlainNamespace(Namespace):
        """Jinja's namespace() without names that reach for Python's insides."""

        # No name for self, so that namespace(self=...) works as it does in Jinja.
        def __init__(*args: Any, **values: Any) -> None:
            attributes = dict(*args[1:], **values)
            for name in attributes:
                check_name(name)
            Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            super().__setitem__(name, value)

    class Environment(ImmutableSandboxedEnvironment):
        """Products are measured before they are made, for systems that do not hold a process to its memory."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "*" and product_size(left, right) > largest:
                raise MemoryError
            if operator == "**" and isinstance(right, int) and right > 1000:
                raise MemoryError
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, namespace=PlainNamespace, dict=make_dict()
    )
    return environment


def make_dict() -> object:
    """dict(...) as a plain callable, so that no template gets hold of the type."""

    class PlainDict:
        def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
            return dict(*args, **values)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    return PlainDict()


def product_size(left: Any, right: Any) -> int:
    """About how large a product becomes: items of a repeated sequence, decimal digits of a number."""
    if isinstance(left, int) and isinstance(right, int):
        return (left.bit_length() + right.bit_length()) // 3
    for sequence, count in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(sequence, str | list | tuple):
            return len(sequence) * count
    return 0


def render(environment: Any, request: dict[str, Any], largest: int) -> str:
    """The text of a template, given up when it grows beyond `largest` characters."""
    pieces, size = [], 0
    for piece in environment.from_string(request["template"]).generate(request["values"]):
        size += len(piece)
        if size > largest:
            raise TooLargeError
        pieces.append(piece)
    return "".join(pieces)


def describe(problem: BaseException, largest: int) -> str:
    """What went wrong, as the end of a sentence that begins with "the chat template"."""
    from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError

    reason = f"{problem}"[:300]
    match problem:
        case RefusalError():
            return f"refuses these messages: {reason}"
        case TemplateSyntaxError():
            return f"has a mistake in line {problem.lineno}: {reason}"
        case SecurityError():
            return f"asks for what no template may have: {reason}"
        case UndefinedError():
            return f"needs a value that is not there: {reason}"
        case RecursionError():
            return "calls itself without end"
        case MemoryError():
            return "asks for more memory than a prompt can need"
        case TooLargeError():
            return f"writes more than {largest:,} characters"
    return f"fails: {type(problem).__name__}: {reason}"


def answer(environment: Any, request: dict[str, Any], largest: int) -> dict[str, str]:
    """Render one request; the alarm of the system bounds it."""
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    try:
        return {"text": render(environment, request, largest)}
    except Exception as problem:  # noqa: BLE001 - whatever a template raises is an answer
        return {"error": describe(problem, largest)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory(size: int) -> None:
    """Let this process grow by `size` bytes and no more. Only Linux can; elsewhere the measured products must do."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as pages:  # noqa: PTH123 - pathlib is a slow import
            used = int(pages.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = used + size
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def main() -> None:
    """Read the settings, then answer line by line until the other side hangs up."""
    settings = json.loads(sys.stdin.buffer.readline())
    sys.path.extend(settings["path"])
    environment = make_environment(settings["largest"])
    limit_memory(settings["memory"])
    for line in sys.stdin.buffer:
        reply = answer(environment, json.loads(line), settings["largest"])
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
