"""One more check for schemathesis: of bodies that fit the document, only what is about content may be refused with 400.

Some things no document can say: that a regular expression does not compile, that two values do not go together, that a
prompt is too long in tokens. Such a refusal has a code of its own; any other 400 of such a body is a failure.
"""

from __future__ import annotations

import schemathesis
from schemathesis.core.failures import Failure

ABOUT_CONTENT = (
    "invalid_grammar",
    "invalid_combination",
    "template_error",
    "context_length_exceeded",
    "limit_exceeded",
    "run_refused",
)


class RefusedForNoReason(Failure):
    """A body that fits was refused, and not for its content."""

    __slots__ = ()


@schemathesis.check
def only_content_is_refused(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Hold every 400 of a positive case to the list."""
    meta = case.meta
    if response.status_code != 400 or meta is None or not meta.generation.mode.is_positive:
        return
    code = response.json()["error"]["code"]
    if code not in ABOUT_CONTENT:
        raise RefusedForNoReason(
            operation=case.operation.label, title="Refused for no reason", message=f"{code}: {response.text[:300]}"
        )
