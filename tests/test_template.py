"""Chat templates: the text transformers makes of the same messages, and no way for a template to run for ever."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from byhand.errors import BadConfig, BadRequest, TemplateError
from byhand.text import ChatTemplate, Tokenizer
from tests.tokenizers_for_tests import SHARED, byte_level, every_sort, write_folder

TEMPLATES = SHARED / "data" / "chat_templates"
REAL = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
HELLO = [{"role": "user", "content": "Hello"}]

PLAIN = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] == 'system' %}\n"
    "<|system|>{{ message['content'] | trim }}\n"
    "    {%- elif message.role == 'assistant' -%}\n"
    "<|assistant|>{% generation %}{{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}\n"
    "    {%- else -%}\n"
    "<|{{ message.role }}|>{{ message['content'] | trim }}\n"
    "    {%- endif -%}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Features that chat templates on the hub use, one line each.
FEATURES = [
    PLAIN,
    "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}[{{ m.content }}]{% endfor %}",
    "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ '<é&>' | tojson }}",
    "{{ strftime_now('%Y-%m') }}",
    "{{ tools is none }}{{ tools }}{{ documents }}{{ missing }}{{ missing is defined }}",
    "{% for m in messages[1:] %}{{ m['content'].split(' ')[0].upper() }}{% endfor %}{{ messages[-1]['role'] }}",
    "{%- macro show(m) -%}({{ m.role }}: {{ m.content }}){%- endmacro -%}"
    "{% for m in messages %}{{ show(m) }}{% endfor %}",
    "{% set x %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}"
    "{{ x | length }}{{ x.replace('e', 'E') }}",
    "{% for m in messages if m.role != 'system' %}{{ m.content ~ '\\n' }}{% else %}none{% endfor %}",
    "{{ dict(a=1, b=[2, 3]) | tojson }}{{ dict(a=1).items() | list }}",
    "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ enable_thinking }}",
    "{% if messages[0].role == 'tool' %}{{ raise_exception('no tool first') }}{% endif %}ok",
    "{{ 'abc' * 3 }}{{ 2 ** 10 }}{{ '%s-%05d' | format('a', 7) }}{{ '{:>6}'.format(3) }}",
    "  {% if true %}  \n  yes  \n  {% endif %}  \n end \n\n",
]

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = {"type": "function", "id": "call12345", "function": {"name": "weather", "arguments": {"place": "Rome"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": HELLO,
    "system": [{"role": "system", "content": "Be brief."}, *HELLO],
    "turns": [
        {"role": "user", "content": "  Say a colour.\n"},
        {"role": "assistant", "content": "red "},
        {"role": "user", "content": "Another <one> & 'more' \"quotes\" – naïve 🙂"},
    ],
    "ends with the assistant": [*HELLO, {"role": "assistant", "content": "Hi, I am"}],
    "two users": [*HELLO, *HELLO],
    "thinking": [*HELLO, {"role": "assistant", "content": "<think>hm</think>yes"}, *HELLO],
    "a tool is called": [
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sun": true}', "name": "weather", "tool_call_id": "call12345"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks"},
    ],
    "a tool first": [{"role": "tool", "content": "x"}],
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def judge() -> Callable[..., str]:
    """transformers' apply_chat_template; what it refuses comes back as the word REFUSED."""
    transformers = pytest.importorskip("transformers")
    backend = byte_level("<s>", "</s>", "<unk>")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)

    def render(source: str, messages: list[dict[str, Any]], **values: Any) -> str:
        try:
            text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **values)
        except Exception:  # noqa: BLE001 - whatever it raises is a refusal
            return "REFUSED"
        assert isinstance(text, str)
        return text

    return render


@pytest.fixture
def make() -> Iterator[Callable[..., ChatTemplate]]:
    """ChatTemplates that are closed when the test is over."""
    made: list[ChatTemplate] = []

    def make(source: Any, **options: Any) -> ChatTemplate:
        made.append(ChatTemplate(source, SPECIAL, **options))
        return made[-1]

    yield make
    for template in made:
        template.close()


def rendered(template: ChatTemplate, messages: list[dict[str, Any]], **values: Any) -> str:
    try:
        return template.render(messages, **values)
    except TemplateError:
        return "REFUSED"


# The judge.


def compare(template: ChatTemplate, judge: Callable[..., str], source: str) -> list[str]:
    """Every conversation, with and without tools and the prompt for an answer; the texts that were made."""
    texts = []
    for messages in CONVERSATIONS.values():
        for tools in (None, [TOOL]):
            for prompt in (True, False):
                values = {"tools": tools, "add_generation_prompt": prompt}
                texts.append(rendered(template, messages, **values))
                assert texts[-1] == judge(source, messages, **values)
    return texts


@pytest.mark.skipif(not REAL, reason="the real templates lie outside the repository")
@pytest.mark.parametrize("name", REAL)
def test_real_templates_equal_transformers(name: str, make: Callable[..., ChatTemplate], judge: Callable[..., str]):
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    texts = compare(make(source), judge, source)
    assert any("Hello" in text for text in texts)


def test_all_seven_real_templates_are_there():
    assert len(REAL) in (0, 7)


@pytest.mark.parametrize("source", FEATURES)
def test_own_templates_equal_transformers(source: str, make: Callable[..., ChatTemplate], judge: Callable[..., str]):
    assert set(compare(make(source), judge, source)) != {"REFUSED"}


@pytest.mark.parametrize("source", [PLAIN, PLAIN.replace(" | trim", ""), "{{ add_generation_prompt }}" + PLAIN])
@pytest.mark.parametrize("content", ["I am", "I am ", "", "I am\n"])
def test_continuing_the_last_message_equals_transformers(
    source: str, content: str, make: Callable[..., ChatTemplate], judge: Callable[..., str]
):
    messages = [*HELLO, {"role": "assistant", "content": content}]
    ours = make(source).render(messages, continue_final=True)
    assert ours == judge(source, messages, continue_final_message=True)
    assert ours.endswith(f"<|assistant|>{content.strip()}") or "trim" not in source


def test_values_reach_the_template(make: Callable[..., ChatTemplate], judge: Callable[..., str]):
    source = "{{ enable_thinking }}{{ documents | tojson }}{{ bos_token }}"
    values = {"enable_thinking": False, "documents": [{"title": "t"}], "bos_token": "<x>"}
    assert make(source).render(HELLO, **values) == judge(source, HELLO, **values)


# What a template gets to see, and from where it comes.


def test_the_text_of_parts_is_joined(make: Callable[..., ChatTemplate]):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert make(PLAIN).render([{"role": "user", "content": parts}]) == "<s><|user|>one\ntwo<|assistant|>"


def test_a_template_cannot_change_the_messages(make: Callable[..., ChatTemplate]):
    messages = [{"role": "user", "content": "Hello", "x": [1]}]
    for source in ("{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}", "{{ messages[0].x.clear() }}"):
        with pytest.raises(TemplateError, match="asks for what no template may have"):
            make(source).render(messages)
    assert messages == [{"role": "user", "content": "Hello", "x": [1]}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__.os.system('true') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}{{ x.y }}",
    ],
)
def test_a_template_stays_in_its_box(source: str, make: Callable[..., ChatTemplate]):
    with pytest.raises(TemplateError, match="the chat template"):
        make(source).render(HELLO)


def test_the_renderer_knows_no_secrets(make: Callable[..., ChatTemplate], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret-in-the-environment")
    template = make("x")
    template.render(HELLO)
    process = template._renderer._process
    assert process is not None
    environ = Path(f"/proc/{process.pid}/environ")
    if not environ.exists():
        pytest.skip("no /proc here")
    assert b"secret-in-the-environment" not in environ.read_bytes()


def test_a_file_comes_before_tokenizer_config(tmp_path: Path):
    tokenizer = every_sort()["byte level"]
    folder = write_folder(
        tmp_path, tokenizer_config={"chat_template": "config"}, chat_template={"chat_template": "old"}
    )
    assert ChatTemplate.open(folder, tokenizer).sources == {"default": "config"}
    (folder / "chat_template.jinja").write_text("file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    template = ChatTemplate.open(folder, tokenizer)
    assert template.sources == {"default": "file", "tool_use": "tools"}
    assert template.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates" / "tool_use.jinja").unlink()
    assert ChatTemplate.open(folder, tokenizer).sources == {"default": "old"}


def test_of_several_templates_the_fitting_one_is_taken(tmp_path: Path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    folder = write_folder(tmp_path, tokenizer_config={"chat_template": named})
    template = ChatTemplate.open(folder, every_sort()["byte level"])
    assert template.render(HELLO) == "plain"
    assert template.render(HELLO, tools=[TOOL]) == "with tools"
    template.close()
    with pytest.raises(TemplateError, match="templates named rag, and none named default"):
        ChatTemplate({"rag": "x"}).render(HELLO)


def test_no_template(tmp_path: Path):
    template = ChatTemplate.open(write_folder(tmp_path), every_sort()["byte level"])
    assert not template
    with pytest.raises(TemplateError, match="this checkpoint has no chat template"):
        template.render(HELLO)


@pytest.mark.parametrize("value", [3, [3], [{"name": "x"}], {"name": 1, "template": "x"}])
def test_a_template_that_is_no_text(value: Any, tmp_path: Path):
    folder = write_folder(tmp_path, tokenizer_config={"chat_template": value})
    with pytest.raises(BadConfig, match=r"tokenizer_config\.json: `chat_template` must be text, or a list"):
        ChatTemplate.open(folder, every_sort()["byte level"])


def test_a_rendered_chat_is_encoded_without_a_second_start(make: Callable[..., ChatTemplate]):
    tokenizer = every_sort()["byte level"]
    text = make(PLAIN).render(HELLO)
    assert tokenizer.doubled_bos(tokenizer.encode(text)) is not None
    assert tokenizer.doubled_bos(tokenizer.encode(text, add_special_tokens=False)) is None


# Templates that fail.


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{% if %}", "has a mistake in line 1"),
        ("\n\n{{ 'a' | nofilter }}", "has a mistake in line 3: No filter named 'nofilter'"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ raise_exception('x' * 100000) }}", "refuses these messages: x{300}$"),
        ("{{ a.b.c }}", "needs a value that is not there: 'a' is undefined"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "fails: TypeError"),
    ],
)
def test_a_template_that_fails_says_why(source: str, match: str, make: Callable[..., ChatTemplate]):
    with pytest.raises(TemplateError, match=match):
        make(source).render(HELLO)


DOUBLING = (
    "{% set ns = namespace(x=START, y=START) %}{% for i in range(70) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"
)
ENDLESS = {
    "a range of 10**9": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that writes": "{% for i in range(99999) %}{% for j in range(999) %}hello{% endfor %}{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "text times a number": "{{ 'a' * 10**10 }}",
    "a number times text": "{{ 10**10 * 'ab' }}",
    "a list times a number": "{{ [1] * 10**10 }}",
    "a list of a range of lists": "{{ ([[0] * 100000] * 100000) | string | length }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "powers of powers": "{{ 9 ** 999 ** 2 }}{{ (9 ** 999) ** 999 }}{{ ((9 ** 999) ** 999) ** 999 }}",
    "squares": DOUBLING.replace("START", "3").replace("NEXT", "ns.x * ns.x"),
    "shifted text": "{{ 'a'.ljust(10**10) }}",
    "centred text": "{{ 'a' | center(10**10) }}",
    "a format width": "{{ '{:>10000000000}'.format(1) }}",
    "a percent width": "{{ '%10000000000d' % 1 }}",
    "a percent filter": "{{ '%10000000000d' | format(1) }}",
    "indented json": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(10**8) }}",
    "joined": "{{ (['a' * 1000000] * 3000000) | join }}",
    "replaced": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "doubled text": DOUBLING.replace("START", "'ab'").replace("NEXT", "ns.x ~ ns.x"),
    "added text": DOUBLING.replace("START", "'ab'").replace("NEXT", "ns.x + ns.x"),
    "doubled lists": DOUBLING.replace("START", "[1]").replace("NEXT", "[ns.x, ns.x]"),
    "doubled lists as json": DOUBLING.replace("START", "[1]")
    .replace("NEXT", "[ns.x, ns.x]")
    .replace("{{ ns.x", "{{ ns.x|tojson"),
    "compared lists": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(70) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "filler text": "{{ lipsum(n=10**9) }}",
    "batches": "{{ [1] | batch(10**9, 0) | list | length }}",
    "slices": "{{ [1] | slice(10**9) | list | length }}",
    "digits": "{{ 1.5 | round(10**9) }}{{ '%.1000000000f' % 1.5 }}",
    "brackets": "{{ " + "(" * 100_000 + " }}",
    "blocks": "{% if 1 %}" * 3_000,
    "filters": "{{ 'a'" + " | trim" * 30_000 + " }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_no_template_runs_for_ever(name: str, make: Callable[..., ChatTemplate]):
    template = make(ENDLESS[name], seconds=0.5)
    began = time.monotonic()
    with pytest.raises(TemplateError, match="the chat template") as caught:
        template.render(HELLO)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_two_seconds_are_the_limit_and_the_next_chat_goes_on(make: Callable[..., ChatTemplate]):
    loop = "{% if messages[0].content == 'loop' %}" + ENDLESS["nested loops"] + "{% endif %}fine"
    template = make(loop)
    began = time.monotonic()
    with pytest.raises(TemplateError, match="ran for more than 2 s and was stopped"):
        template.render([{"role": "user", "content": "loop"}])
    assert 1.9 < time.monotonic() - began < 6
    assert template.render(HELLO) == "fine"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its memory")
def test_a_template_is_held_to_its_memory(make: Callable[..., ChatTemplate]):
    template = make("{{ 'a'.ljust(6 * 10**8) | length }}", seconds=20)
    with pytest.raises(TemplateError, match="asks for more memory than a prompt can need"):
        template.render(HELLO)


@pytest.mark.parametrize("product", ["'a' * 10**8", "10**8 * 'a'", "[1] * 10**7", "2 ** 1001"])
def test_products_are_measured_before_they_are_made(product: str, make: Callable[..., ChatTemplate]):
    with pytest.raises(TemplateError, match="asks for more memory"):
        make("{{ (" + product + ") | string | length > 0 }}", seconds=20).render(HELLO)


def test_a_text_that_grows_without_end_is_given_up(make: Callable[..., ChatTemplate]):
    with pytest.raises(TemplateError, match="writes more than 4,000,000 characters"):
        make("{% for i in range(5) %}{{ 'a' * 999999 }}{% endfor %}").render(HELLO)
    assert len(make("{% for i in range(4) %}{{ 'a' * 999999 }}{% endfor %}").render(HELLO)) == 3_999_996


def test_a_renderer_that_dies_is_replaced(make: Callable[..., ChatTemplate]):
    template = make("fine")
    assert template.render(HELLO) == "fine"
    process = template._renderer._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert template.render(HELLO) == "fine"


def test_no_process_is_left_behind(make: Callable[..., ChatTemplate]):
    template = ChatTemplate("fine")
    template.render(HELLO)
    process = template._renderer._process
    assert process is not None
    assert process.poll() is None
    del template
    assert process.poll() is not None


# Messages that are none.


@pytest.mark.parametrize(
    ("messages", "param", "match"),
    [
        ("hello", "messages", "messages is a str; it must be a list"),
        (None, "messages", "messages is missing"),
        ({"role": "user"}, "messages", "messages is a dict"),
        ([], "messages", "messages is empty"),
        (["hello"], "messages[0]", r"messages\[0\] is a str; it must be an object with role and content"),
        ([*HELLO, {"content": "x"}], "messages[1].role", r"messages\[1\].role is missing"),
        ([*HELLO, {"role": 3, "content": "x"}], "messages[1].role", r"messages\[1\].role is 3"),
        ([{"role": "", "content": "x"}], "messages[0].role", r"messages\[0\].role is ''"),
        ([{"role": "user"}], "messages[0].content", r"messages\[0\].content is missing; it must be text"),
        ([{"role": "user", "content": None}], "messages[0].content", r"messages\[0\].content is missing"),
        ([{"role": "user", "content": 5}], "messages[0].content", r"messages\[0\].content is a int; it must be text"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", r"content\[0\] is a str"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "messages[0].content[0].type",
            r"content\[0\].type is 'image_url'; only 'text' can be read",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "text is missing"),
        ([{"role": "user", "content": "x", "y": b"z"}], "messages[0].y", r"messages\[0\].y is a bytes"),
        ([{"role": "user", "content": "x", 3: 4}], "messages[0]", r"messages\[0\] has the key 3; a key is text"),
    ],
)
def test_malformed_messages_are_refused_by_place(messages: Any, param: str, match: str):
    with pytest.raises(BadRequest, match=match) as caught:
        ChatTemplate(PLAIN).render(messages)
    assert caught.value.param == param


def test_messages_nested_without_end_are_refused():
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadRequest, match=r"messages\[0\] is nested more than 100 deep"):
        ChatTemplate(PLAIN).render([{"role": "user", "content": "x", "extra": deep}])


@pytest.mark.parametrize(("tools", "match"), [("x", "tools is a str"), ([3], r"tools\[0\] is a int")])
def test_malformed_tools_are_refused(tools: Any, match: str):
    with pytest.raises(BadRequest, match=match):
        ChatTemplate(PLAIN).render(HELLO, tools=tools)


def test_there_must_be_something_to_continue(make: Callable[..., ChatTemplate]):
    call = {"role": "assistant", "tool_calls": [CALL]}
    with pytest.raises(BadRequest, match=r"messages\[1\].content is missing, so there is nothing to continue"):
        make(PLAIN).render([*HELLO, call], continue_final=True)
    with pytest.raises(TemplateError, match="leaves out the last message"):
        make("nothing").render(HELLO, continue_final=True)


def test_a_tokenizer_and_its_template_from_one_folder(tmp_path: Path):
    folder = write_folder(
        tmp_path,
        byte_level("<s>", "</s>", start="<s>"),
        tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "chat_template": PLAIN},
    )
    tokenizer = Tokenizer.open(folder)
    template = ChatTemplate.open(folder, tokenizer)
    ids = tokenizer.encode(template.render(HELLO), add_special_tokens=False)
    assert json.dumps(tokenizer.decode(ids, skip_special_tokens=False)) == '"<s><|user|>Hello<|assistant|>"'
    template.close()
