"""Reading, Step and Run as HTML for notebooks: no scripts, nothing from another origin, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import exp

from byhand.shown import as_html
from byhand.types import Candidate, Position, Reading, Step, Token

# Surprise paints: nothing above 70 %, then amber deepening to red as the probability falls.
CONFIDENT = 0.7
AMBER_HUE, RED_HUE = 42.0, 6.0

STYLE = """<style>
.byhand{font:14px/1.5 system-ui,sans-serif;margin:8px 0;max-width:960px}
.byhand code,.byhand .t{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;background:none;color:inherit}
.byhand .t{display:inline-block;padding:1px 3px;margin:1px;border-radius:4px;white-space:pre;vertical-align:top}
.byhand .prompt{background:rgba(90,130,200,.16)}
.byhand .forced{text-decoration:underline;text-decoration-thickness:2px;text-underline-offset:3px}
.byhand .special{opacity:.6}
.byhand .below{display:block;font-size:11px;opacity:.75;text-align:center}
.byhand .quiet{opacity:.65;font-size:12px}
.byhand table{border-collapse:collapse;margin:6px 0;font-size:13px}
.byhand th{font-weight:600;text-align:left;padding:2px 12px 2px 0;border-bottom:1px solid rgba(128,128,128,.4)}
.byhand td{text-align:left;padding:2px 12px 2px 0;border:0;white-space:nowrap;vertical-align:middle}
.byhand td.n{text-align:right;font-variant-numeric:tabular-nums}
.byhand .bar{display:inline-block;height:10px;border-radius:2px;background:rgba(60,120,216,.75);vertical-align:middle}
.byhand .bar.tail{background:rgba(128,128,128,.45)}
.byhand .cut td{opacity:.5}
.byhand .taken td{font-weight:600}
</style>"""


def between_marks(page: str, name: str, text: str) -> str:
    """A page whose part between `<!-- NAME: begin -->` and `<!-- NAME: end -->` is made anew; without, as it is."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}" if found else page


def visible(text: str) -> str:
    """A piece with its white space made visible, escaped for HTML."""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return escape(shown) or "∅"


def surprise_color(prob: float) -> str:
    """The paint behind a token of this probability: none when confident, else a CSS background."""
    if prob >= CONFIDENT:
        return ""
    depth = 1 - prob / CONFIDENT
    hue = AMBER_HUE + (RED_HUE - AMBER_HUE) * depth
    return f"background:hsla({hue:.0f},90%,52%,{0.18 + 0.42 * depth:.2f})"


def reading_html(reading: Reading) -> str:
    """The lesson's line under the prompt, and the reading that makes sense of each prediction."""
    strip = "".join(_token(at.token, below=visible(at.predicted.token.text)) for at in reading)
    rows = "".join(_position_row(at) for at in reading)
    words = (
        "Under each token: what the model predicts after it. Each prediction continues everything before it; "
        "only the last one continues the whole prompt."
    )
    head = "<tr><th>read so far</th><th>prediction</th><th></th><th>really next</th></tr>"
    return _page(f'<div>{strip}</div><div class="quiet">{words}</div><table>{head}{rows}</table>')


def _position_row(at: Position) -> str:
    actual = "" if at.actual is None else f"<code>{visible(at.actual.token.text)}</code> rank {at.actual.rank}"
    read = escape(" ".join("".join(at.context).split("\n")))[-400:]
    return (
        f'<tr><td style="white-space:pre-wrap"><code>{read}</code> →</td>'
        f"<td><code><b>{visible(at.predicted.token.text)}</b></code></td>"
        f'<td>{_bar(at.predicted.prob)} {at.predicted.prob:.1%}</td><td class="quiet">{actual}</td></tr>'
    )


def step_html(step: Step) -> str:
    """The candidates as bars, before and after the chain; those cut stay in place, with the stage that cut them."""
    head = "<tr><th>next token</th><th>model</th><th>after the chain</th><th></th></tr>"
    rows = "".join(_candidate_row(candidate, step) for candidate in step.top)
    tail = (
        f'<tr><td class="quiet">the rest of the vocabulary</td>'
        f"<td>{_bar(step.tail_mass, 'tail')} {step.tail_mass:.1%}</td><td></td><td></td></tr>"
    )
    return _page(f"<div>{_step_line(step)}</div><table>{head}{rows}{tail}</table>")


def _step_line(step: Step) -> str:
    how = "forced" if step.forced else "drawn" if step.draw else "best"
    dice = f" · draw {step.draw.u:.4f} in [{step.draw.low:.4f}, {step.draw.high:.4f})" if step.draw else ""
    before = step.positions_reused
    return (
        f"{_token(step.token, step)} <b>{how}</b> "
        f'<span class="quiet">rank {step.rank} · p {exp(step.logprob):.1%} · entropy {step.entropy:.2f} nats · '
        f"margin {step.margin:.2f}{dice} · {step.phase}: {step.positions_computed} position(s), "
        f"cache {before} → {before + step.positions_computed} · {step.seconds * 1000:.1f} ms</span>"
    )


def _candidate_row(candidate: Candidate, step: Step) -> str:
    taken = candidate.token.id == step.token.id
    kind = "taken" if taken else "cut" if candidate.removed_by else ""
    note = f"cut by {escape(candidate.removed_by)}" if candidate.removed_by else "taken" if taken else ""
    raw = exp(candidate.logprob)
    after = "—" if candidate.removed_by else f"{_bar(candidate.prob)} {candidate.prob:.1%}"
    return (
        f'<tr class="{kind}"><td><code>{visible(candidate.token.text)}</code></td>'
        f"<td>{_bar(raw)} {raw:.1%}</td><td>{after}</td>"
        f'<td class="quiet">{note}</td></tr>'
    )


def run_html(prompt: Iterable[Token], steps: Sequence[Step]) -> str:
    """The text as tokens: the prompt on a cool ground, the continuation painted by surprise."""
    before = "".join(_token(token, kind="prompt") for token in prompt)
    after = "".join(_token(step.token, step) for step in steps)
    ending = next((step.finish_reason for step in reversed(steps) if step.finish_reason), None)
    count = f"{len(steps)} tokens after the prompt" + (f" · finish_reason: {ending}" if ending else "")
    return _page(f'<div>{before}{after}</div><div class="quiet">{count}</div>')


def _token(token: Token, step: Step | None = None, *, kind: str = "", below: str = "") -> str:
    title = f"id {token.id}"
    style = ""
    if step is not None:
        title += f" · p {exp(step.logprob):.2%} · rank {step.rank}"
        style = surprise_color(exp(step.logprob))
        kind += " forced" * step.forced
    kind += " special" * token.special
    under = f'<span class="below">{below}</span>' if below else ""
    return f'<span class="t {kind}" style="{style}" title="{title}">{visible(token.text)}{under}</span>'


def _bar(share: float, kind: str = "") -> str:
    return f'<span class="bar {kind}" style="width:{max(1, round(share * 160))}px"></span>'


def _page(body: str) -> str:
    return f'{STYLE}<div class="byhand">{body}</div>'


as_html.register(Reading, reading_html)
as_html.register(Step, step_html)
