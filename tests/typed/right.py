"""Programs as people write them: no type checker may find a fault here. Checked by tests/test_typing.py, never run."""

from collections.abc import Iterator

import byhand
from byhand import LLM, Completion, Reading, SamplingParams, Score, Step

llm: LLM = LLM()
params = SamplingParams(temperature=0.7, stop="\n", banned_ids=[5], logit_bias={3: -1}, n=1)
many_prompts = ["a", "b"]
many_ids = [[5, 6], [7]]


def one() -> Completion:
    print(llm.generate("hi").text, llm.generate([5, 6]).ids, llm.generate("hi", params).usage.cached_tokens)
    print(llm.generate("hi", max_tokens=4, stop=["\n"]).finish_reason, llm.generate("hi", params, seed=4).steps[0].rank)
    print(llm.chat("Hello").text, llm.chat([{"role": "user", "content": "hi"}], temperature=0.7).text)
    return llm.start("hi", min_p=0.1).completion()


def several(lines: Iterator[str], count: int) -> list[Completion]:
    for completion in llm.generate("hi", n=4):
        print(completion.text)
    print(llm.generate(lines)[0].text, llm.chat("Hello", n=count)[0].text, llm.generate(many_ids, params, n=2)[3].text)
    return (
        llm.generate(many_prompts)
        + llm.generate(many_ids, max_tokens=3)
        + llm.generate(("a", [5]))
        + llm.generate(lines)
    )


def either(prompt: str | list[str]) -> str:
    done = llm.generate(prompt)
    return done.text if isinstance(done, Completion) else done[0].text


def looked_at() -> tuple[Reading, Score, Iterator[Step]]:
    print(llm.read("hi").to_dict()["positions"], llm.score("a", " b").perplexity, llm.logits("hi").shape)
    print(llm.start("hi").to_dict()["steps"], llm.generate("hi").to_pandas().shape, llm.engine.pages_in_use)
    run = llm.start("hi")
    run.set(temperature=0.5)
    print(llm.checkpoint_params(max_tokens=3).replace(top_k=5).stop, byhand.__version__)
    return llm.read([5, 6], top=3), llm.score([5, 6], [7]), llm.stream("hi", max_tokens=3)
