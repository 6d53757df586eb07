"""What /live says: scripted sessions with the embedded model, every frame of both sides in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from websockets.sync.client import connect

from tests.frozen.checkpoints import open_embedded
from tests.frozen.plain import plain
from tests.serving import Limits, serve
from tests.serving import until as wait_until

Json = dict[str, Any]

# The frames after which nothing more comes of an op; the others end with a frame of their own name.
ENDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("start", "load", "step", "run", "force", "pause"), ("paused", "finished")),
    **dict.fromkeys(("insert", "edit", "rewind", "undo"), ("changed",)),
    "fork": ("forked",),
    "switch": ("switched",),
    "resume": ("resumed",),
    "stop": ("finished",),
}
GREEDY = {"temperature": 0, "seed": 1, "top_p": 1.0}
DICE = {"temperature": 0.9, "seed": 5, "top_p": 1.0}
LIMITS = Limits(body_bytes=50_000, live_runs=3)
ANY = "<any>"  # what depends on when a frame was read


class Names:
    """What the server makes up, by names that stay: the runs in the order in which they came, the tokens."""

    def __init__(self) -> None:
        self._stable: dict[str, str] = {}

    def learn(self, frame: Json) -> None:
        """Take in what a frame brings that is new."""
        if frame.get("run") is not None:
            self._stable.setdefault(frame["run"], f"<run {len(self._stable) + 1}>")

    def replaced(self, value: Any) -> Any:
        """The same with every name that was learnt put into its stable form."""
        text = json.dumps(value, ensure_ascii=False)
        for name, stable in self._stable.items():
            text = text.replace(name, stable)
        return json.loads(text)


class Talk:
    """A connection, and what both sides say on it."""

    def __init__(self, url: str) -> None:
        self.lines: list[Json] = []
        self.seen: list[Json] = []  # the frames that the last op brought
        self.names = Names()
        self._url = url
        self._sent = 0
        self._open = ExitStack()
        self._dial()

    def _dial(self) -> None:
        self._socket = self._open.enter_context(connect(self._url, max_size=None))
        hello = self.next()
        self.resume = hello["resume"]
        self.keep(hello)

    def close(self) -> None:
        """Hang up."""
        self._open.close()

    def dial_again(self) -> None:
        """Hang up, and come back as somebody new."""
        self.close()
        self.lines.append({"sent": "<hung up, and connected again>"})
        self._dial()

    def next(self) -> Json:
        """The next frame."""
        frame: Json = json.loads(self._socket.recv(timeout=20))
        self.names.learn(frame)
        self.seen.append(frame)
        return frame

    def keep(self, frame: Json) -> None:
        """Write a frame of the server's down."""
        self.lines.append({"got": self.names.replaced(plain(frame))})

    def send(self, op: str, shown: Json | None = None, **fields: Any) -> int:
        """Send a frame, of which some fields are shown otherwise; its id."""
        self._sent += 1
        self.seen.clear()
        frame = {"op": op, "id": self._sent, **fields}
        self.lines.append({"sent": self.names.replaced({**frame, **(shown or {})})})
        self._socket.send(json.dumps(frame))
        return self._sent

    def ask(
        self,
        op: str,
        *,
        ends: tuple[str, ...] = (),
        shown: Json | None = None,
        hidden: Sequence[str] = (),
        **fields: Any,
    ) -> Json:
        """Send a frame, and write down all up to its end, but for hidden fields; the last frame."""
        mark = self.send(op, shown, **fields)
        while True:
            frame = self.next()
            self.keep(frame | {name: ANY for name in hidden if name in frame})
            if frame.get("id") == mark and frame["event"] in (*(ends or ENDS.get(op, (op,))), "error"):
                return frame

    def raw(self, text: str) -> None:
        """Send any text; one frame is the answer."""
        self.lines.append({"sent": text if len(text) < 200 else f"{text[:40]}… ({len(text)} characters)"})
        self._socket.send(text)
        self.keep(self.next())

    def start(self, prompt: Any, params: Json, **fields: Any) -> Json:
        """Start a run, without readings where none are asked for; its `started`."""
        self.ask("start", prompt=prompt, params=params, **{"top": 0, **fields})
        return next(frame for frame in self.seen if frame["event"] == "started")


# The sessions.


def steered(talk: Talk) -> None:
    """Everything that can be done to one run."""
    begun = talk.start("The owl", DICE, top=2)
    talk.ask("step")
    talk.ask("step", count=2)
    talk.ask("force", token=" tree")
    talk.ask("insert", text=" and so")
    talk.ask("logits", index=2)
    talk.ask("edit", position=len(begun["ids"]) + 1, token=" dog")
    talk.ask("step")
    talk.ask("rewind", count=2)
    talk.ask("undo")
    talk.ask("undo")
    talk.ask("undo")
    talk.ask("tree")
    talk.ask("step", count=2)
    talk.ask("record")
    talk.ask("stop")
    talk.ask("tree")


def edited_prompt(talk: Talk) -> None:
    """A token in the prompt: what came after it is gone, and its end is read again."""
    talk.start("Daisy had a red ball", GREEDY, top=1)
    talk.ask("step", count=2)
    talk.ask("edit", position=3, token=" blue")
    talk.ask("step", count=2)
    talk.ask("insert", ids=[17, 399])
    talk.ask("rewind")
    talk.ask("rewind", count=3)
    talk.ask("undo")
    talk.ask("step")


def forked(talk: Talk) -> None:
    """Two runs on the same pages, the twin with dice of its own and other settings."""
    run = talk.start([1, *range(300, 335)], DICE)["run"]
    talk.ask("step", count=2)
    twin = talk.ask("fork", seed=9)["run"]
    talk.ask("tree")
    talk.ask("step", run=twin, count=2)
    talk.ask("set", run=twin, params={"temperature": 0.5, "top_k": 5, "banned_ids": [17]})
    talk.ask("step", run=twin, count=2)
    talk.ask("step")
    talk.ask("switch", run=run)
    talk.ask("step")
    talk.ask("undo", run=twin)
    talk.ask("undo", run=twin)
    talk.ask("fork", run=twin)
    talk.ask("fork", run=twin)
    talk.ask("stop", run=run)
    talk.ask("tree")


def until(talk: Talk) -> None:
    """Each breakpoint, and on past it; then the end, and on from there."""
    talk.start("Once upon a time", {**GREEDY, "max_tokens": 29})
    talk.ask("run", until={"token": " little"})
    talk.ask("step")
    talk.ask("run", until={"entropy": 2.0})
    talk.ask("run", until={"margin": 0.5})
    talk.ask("step", count=9, until={"token": " day"})
    talk.ask("run", until={"text": "she"})
    talk.ask("rewind", count=5)
    talk.ask("insert", text=". They were happy. The end.")
    talk.ask("run", until={"end_probability": 0.2})
    talk.ask("run")
    talk.ask("run")
    talk.ask("edit", position=26, token=",")
    talk.ask("run")


def paused(talk: Talk) -> None:
    """A run that goes on and on is paused, changed while it goes, and stopped."""
    begun = talk.start("One day", {**GREEDY, "ignore_eos": True})
    length = len(begun["ids"])
    _going(talk, "pause", ("paused",))
    _going(talk, "edit", ("changed",), position=length + 3, token=" dog")
    talk.ask("step", count=2)
    talk.ask("stop")


def _going(talk: Talk, op: str, ends: tuple[str, ...], **fields: Any) -> None:
    """Let the run go and send another frame meanwhile. How many steps it makes until then is nobody's promise."""
    talk.send("run")
    for _ in range(3):
        assert talk.next()["event"] == "step"
    mark = talk.send(op, **fields)
    talk.keep({"event": "step", "step": ANY})  # for all that come
    while True:
        frame = talk.next()
        if frame["event"] != "step":
            talk.keep({**frame, "dropped": ANY} if "dropped" in frame else frame)
        if frame.get("id") == mark and frame["event"] in ends:
            return


def ended(talk: Talk) -> None:
    """A chat under a schema goes to its end; its record follows by itself."""
    schema = {
        "type": "object",
        "properties": {"big": {"type": "boolean"}},
        "required": ["big"],
        "additionalProperties": False,
    }
    messages = [{"role": "user", "content": "Is it big?"}]
    params = {**DICE, "json_schema": json.dumps(schema)}
    talk.ask("start", messages=messages, params=params, top=1, record=True)
    talk.ask("run", ends=("record",))
    talk.ask("step")
    talk.ask("rewind", count=2)
    talk.ask("run", ends=("record",))


def loaded(talk: Talk) -> None:
    """A record becomes a run, and goes on."""
    talk.start("In the park", DICE)
    talk.ask("step", count=2)
    talk.ask("set", params={"temperature": 0})
    talk.ask("step")
    record = talk.ask("record")["record"]
    talk.ask("step", count=2)
    talk.ask("stop")
    talk.ask("load", record=record, shown={"record": "<the record above>"})
    talk.ask("step", count=2)


def long_prompt(talk: Talk) -> None:
    """A prompt of two passes, and the same again on known pages."""
    ids = [1, *(300 + place * 7 % 900 for place in range(600))]
    for _ in range(2):
        shown = {"prompt": f"<{len(ids)} ids>"}
        run = talk.ask("start", prompt=ids, params=GREEDY, top=0, shown=shown, hidden=("ids", "tokens"))["run"]
        talk.ask("step", run=run)
        talk.ask("stop", run=run)


def resumed(talk: Talk) -> None:
    """A connection is lost; another takes its runs over."""
    run = talk.start("She said", DICE)["run"]
    talk.ask("step", count=2)
    talk.ask("fork", seed=3)
    talk.ask("step", run=run)
    token = talk.resume
    talk.dial_again()
    talk.ask("resume", token=token, shown={"token": "<resume>"})
    talk.ask("step", run=run)
    talk.ask("tree")
    talk.ask("resume", token=token, shown={"token": "<resume>"})


RAW = (
    "{",
    "[]",
    "{}",
    '{"op": "dance"}',
    '{"op": "start"}',
    '{"op": "start", "prompt": 5}',
    '{"op": "start", "prompt": [4096]}',
    '{"op": "start", "prompt": "a", "top": 1000000}',
    '{"op": "start", "prompt": "a", "params": {"temperature": "hot"}}',
    '{"op": "start", "prompt": "a", "params": {"hotness": 1}}',
    '{"op": "start", "prompt": "a", "color": 1}',
    '{"op": "step"}',
    '{"op": "step", "run": "nobody"}',
    '{"op": "resume", "token": "guess"}',
    '{"op": "tree", "id": [1]}',
    '{"op": "start", "prompt": "' + "a" * 50_000 + '"}',
    '{"op": "start", "prompt": [' + "5," * 3000 + "5]}",
)


def refused(talk: Talk) -> None:
    """Errors of each common kind; the connection stays, and the run as it was."""
    for text in RAW:
        talk.raw(text)
    run = talk.start("Once", {**GREEDY, "max_tokens": 1})["run"]
    talk.ask("step", count=0)
    talk.ask("force", token="two words")
    talk.ask("insert", ids=[])
    talk.ask("edit", position=99, token=5)
    talk.ask("rewind", count=99)
    talk.ask("undo")
    talk.ask("logits", index=40)
    talk.ask("run", until={"moon": 1})
    talk.ask("run", until={"token": "two words"})
    talk.ask("set", params={"temperature": -1})
    talk.ask("run")
    talk.ask("run")
    talk.ask("fork")
    talk.ask("step")
    record = talk.ask("record", run=run)["record"]
    other = {**record, "model": {**record["model"], "digest": "other"}}
    talk.ask("load", record=other, shown={"record": "<of another model>"})
    talk.ask("load", record={"format": "x"})
    talk.start([5], GREEDY)
    talk.ask("start", prompt=[5], params=GREEDY, top=0)
    talk.ask("step")


SCRIPTS: dict[str, Callable[[Talk], None]] = {
    script.__name__: script
    for script in (
        steered,
        edited_prompt,
        forked,
        until,
        paused,
        ended,
        loaded,
        long_prompt,
        resumed,
        refused,
    )
}


def made() -> dict[str, list[Json]]:
    """All sessions, one after the other, with a server of their own: a prompt may be found in a cache once filled."""
    running = serve(open_embedded(), limits=LIMITS)
    sessions: dict[str, list[Json]] = {}
    try:
        assert wait_until(lambda: running.get("/health").status == 200, 60)
        for name, script in SCRIPTS.items():
            talk = Talk(f"ws://127.0.0.1:{running.port}/live")
            try:
                script(talk)
            finally:
                talk.close()
            sessions[name] = talk.lines
    finally:
        running.stop()
    return sessions
