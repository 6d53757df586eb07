"""Log-probabilities in OpenAI's two shapes, with keys that no two candidates share."""

from __future__ import annotations

from collections.abc import Sequence

from byhand.server.answers import ChosenLogprob, LegacyLogprobs, PromptLogprob, TokenLogprob
from byhand.text import Detokenizer, Tokenizer
from byhand.types import Candidate, Position, Step, Token


def name_of(token: Token) -> str:
    """The token's text; `bytes:\\xe2…` where its bytes are no text, `token_id:7` where it has none."""
    if not token.bytes:
        return f"token_id:{token.id}"
    try:
        return token.bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def by_name(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Candidates by name, best first; of two with one text the lesser goes by its id."""
    named: dict[str, float] = {}
    for candidate in candidates:
        name = name_of(candidate.token)
        named[f"token_id:{candidate.token.id}" if name in named else name] = candidate.logprob
    return named


def with_chosen(top: Sequence[Candidate], k: int, chosen: Token, logprob: float, rank: int) -> list[Candidate]:
    """The best k, and the token that came though it is not among them."""
    best = list(top[:k])
    if all(candidate.token.id != chosen.id for candidate in best):
        best.append(Candidate(chosen, logprob, rank, 0.0))
    return best


class Offsets:
    """Where each token's text begins, in characters; unfinished characters begin where they will stand."""

    def __init__(self, tokenizer: Tokenizer, context_ids: Sequence[int] = (), start: int = 0) -> None:
        self._detokenizer = Detokenizer(tokenizer, context_ids)
        self.end = start

    def push(self, token_id: int) -> int:
        """The offset of the next token."""
        offset = self.end
        self.end += len(self._detokenizer.push(token_id))
        return offset


def empty_legacy(k: int) -> LegacyLogprobs:
    """No token yet."""
    return LegacyLogprobs(tokens=[], token_logprobs=[], top_logprobs=[] if k else None, text_offset=[])


def _add(to: LegacyLogprobs, token: Token, logprob: float | None, top: list[Candidate] | None, offset: int) -> None:
    to.tokens.append(name_of(token))
    to.token_logprobs.append(logprob)
    to.text_offset.append(offset)
    if to.top_logprobs is not None:
        to.top_logprobs.append(None if top is None else by_name(top))


def legacy_step(step: Step, k: int, offset: int) -> LegacyLogprobs:
    """One generated token."""
    out = empty_legacy(k)
    _add(out, step.token, step.logprob, with_chosen(step.top, k, step.token, step.logprob, step.rank), offset)
    return out


def legacy_prompt(
    tokens: Sequence[Token], positions: Sequence[Position], k: int, text: str, tokenizer: Tokenizer
) -> LegacyLogprobs:
    """The prompt's tokens; the first one follows on nothing and has no log-probability."""
    out = empty_legacy(k)
    offsets = Offsets(tokenizer)
    before: Position | None = None
    for token, position in zip(tokens, positions, strict=True):
        offset = min(offsets.push(token.id), len(text))
        actual = None if before is None else before.actual
        if actual is None or before is None:
            _add(out, token, None, None, offset)
        else:
            top = with_chosen(before.top, k, token, actual.logprob, actual.rank)
            _add(out, token, actual.logprob, top, offset)
        before = position
    return out


def joined(parts: Sequence[LegacyLogprobs], k: int) -> LegacyLogprobs:
    """Several lists as one."""
    out = empty_legacy(k)
    for part in parts:
        out.tokens += part.tokens
        out.token_logprobs += part.token_logprobs
        out.text_offset += part.text_offset
        if out.top_logprobs is not None:
            out.top_logprobs += part.top_logprobs or []
    return out


def _scored(token: Token, logprob: float) -> TokenLogprob:
    return TokenLogprob(token=name_of(token), logprob=logprob, bytes=list(token.bytes))


def chat_step(step: Step, k: int) -> ChosenLogprob:
    """One generated token as chat shows it."""
    best = [_scored(candidate.token, candidate.logprob) for candidate in step.top[:k]]
    return ChosenLogprob(**_scored(step.token, step.logprob).model_dump(), top_logprobs=best)


def prompt_logprobs(positions: Sequence[Position], k: int) -> list[dict[int, PromptLogprob] | None]:
    """For every token of the prompt but the first: itself and the best k, by id."""
    out: list[dict[int, PromptLogprob] | None] = [None]
    for position in positions[:-1]:
        assert position.actual is not None
        actual = position.actual
        candidates = with_chosen(position.top, k, actual.token, actual.logprob, actual.rank)
        out.append(
            {
                each.token.id: PromptLogprob(logprob=each.logprob, rank=each.rank, decoded_token=name_of(each.token))
                for each in candidates
            }
        )
    return out
