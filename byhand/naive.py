"""The decode loop with nothing hidden. Read this page first; everything else in byhand does the same, faster.

A language model is a function: a list of token ids goes in, and for every position a row of scores (logits) comes
out, one score for each entry of the vocabulary. Row i says what may follow after ids[0..i]. To write text, take the
last row's best entry, append it to the list, and call the function again with the whole list.
"""

from __future__ import annotations

from byhand.llm import LLM


def generate(llm: LLM, prompt: str | list[int], max_new_tokens: int = 20) -> list[int]:
    """Greedy decoding, the whole list through the model at every step. No cache, no batch: the slow truth."""
    ids = llm.encode(prompt)  # "A list of colors: red" -> [1, 42, ...]
    for _ in range(min(max_new_tokens, llm.context_length - len(ids))):
        logits = llm.logits(ids)  # (len(ids), vocab): a prediction after EVERY position
        next_id = int(logits[-1].argmax())  # only the last one continues the whole list
        ids.append(next_id)
        if next_id in llm.eos_ids:  # the model says: this is the end
            break
    return ids
