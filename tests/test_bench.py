"""The benchmark: its arithmetic on known cases, its checkpoints, its processes, its command line, on tiny shapes."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers as peers_of_byhand
from benchmarks.peers import PEERS, gguf_file
from byhand import LLM, SamplingParams
from byhand.bench import campaign, checkpoints, engines, results, run
from byhand.bench.process import EngineFailed, Worker
from byhand.bench.ratios import gap, paired_ratio, spread
from byhand.bench.run import CONTROL, Contestant, Plan, companies_of
from byhand.bench.scenarios import SCENARIOS, Scenario, prompts, scenarios_named
from byhand.bench.shapes import SHAPES, tensors_of
from byhand.bench.summary import summarise
from byhand.cli.main import main
from byhand.cli.views.benchmark import _of_captured
from byhand.errors import BadRequest

DECODE = replace(SCENARIOS["decode"], prompt=16, new=6)


# Arithmetic


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine halves its speed in the middle: each pair still says 0.8, the medians of all times do not.
    theirs = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    ours = [0.8 * time for time in theirs]
    ratio = paired_ratio(ours, theirs)
    assert (ratio.median, ratio.low, ratio.high, ratio.count) == (0.8, 0.8, 0.8, 6)
    crossed = paired_ratio([1.0, 2.0], [2.0, 1.0])
    assert crossed.median == 1.25
    assert crossed.median != statistics.median([1.0, 2.0]) / statistics.median([2.0, 1.0])


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    import random

    dice = random.Random(1)
    inside = 0
    for _ in range(100):
        ratios = [dice.lognormvariate(0.0, 0.1) for _ in range(25)]
        found = paired_ratio(ratios, [1.0] * len(ratios))
        inside += found.low <= 1.0 <= found.high
        assert found.low <= found.median <= found.high
    assert 88 <= inside <= 100


def test_an_interval_is_the_same_every_time() -> None:
    values = [0.9, 1.1, 1.0, 1.3, 0.7]
    assert paired_ratio(values, [1.0] * 5) == paired_ratio(values, [1.0] * 5)


def test_spreads_and_gaps() -> None:
    assert spread([3.0]).to_json() == {"median": 3.0, "low": 3.0, "high": 3.0, "count": 1}
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]).to_json() == {"median": 3.0, "low": 2.0, "high": 4.0, "count": 5}
    assert gap([1.0, 1.5, 2.0, 7.0]) == 0.5


def burst(step: float, steps: int = 6) -> dict[str, Any]:
    """A burst of which every token takes `step` seconds, the first one more."""
    return {"seconds": 1 + steps * step, "stamps": [1 + step * number for number in range(1, steps + 1)]}


def measurement(ours: float, **theirs: float) -> dict[str, Any]:
    """Three rounds in which everyone keeps their speed; weights of 1 GB, a machine of 10 GB/s."""
    pairs = [
        {"opponent": name, "ours": burst(ours), "theirs": burst(step), "bandwidth": [9.0, 11.0]}
        for name, step in theirs.items()
        for _ in range(3)
    ]
    labels = ["byhand", *theirs]
    return {"contestants": [{"label": label, "weight_bytes": 10**9} for label in labels], "pairs": pairs}


def test_a_summary_tells_shares_ratios_and_the_best_peer() -> None:
    found = summarise(DECODE, measurement(0.2, **{CONTROL: 0.2, "slow": 0.4, "fast": 0.16}))
    assert found["ours"]["seconds"]["median"] == pytest.approx(0.2)
    assert found["ours"]["share"]["median"] == pytest.approx(0.5)  # 1 GB in 0.2 s, of 10 GB/s
    assert found["ours"]["per_second"] == pytest.approx(5.0)
    ratios = {each["label"]: each["ratio"]["median"] for each in found["opponents"]}
    assert ratios == pytest.approx({CONTROL: 1.0, "slow": 0.5, "fast": 1.25})
    assert found["best_peer"] == "fast"


def test_what_counts_of_a_burst() -> None:
    batch, prefill = SCENARIOS["batch-8"], SCENARIOS["prefill-512"]
    assert batch.seconds(burst(0.5)) == 4.0
    assert batch.per_second(4.0) == 8 * 64 / 4.0
    assert prefill.per_second(2.0) == 256.0


def test_companies_fit_into_memory() -> None:
    contestants = [Contestant(name, name, name, "f") for name in "abcd"]
    sized = list(zip(contestants, (4.0, 4.0, 9.0, 1.0), strict=True))
    names = [[each.label for each in company] for company in companies_of(sized, 8.0)]
    assert names == [["a", "b"], ["c"], ["d"]]
    assert companies_of([], 8.0) == [[]]


# Scenarios and prompts


def test_no_prompt_comes_twice() -> None:
    seen = {tuple(ids) for seed in range(20) for ids in prompts(SCENARIOS["batch-8"], 49152, str(seed))}
    assert len(seen) == 160
    assert all(len(ids) == 128 and max(ids) < 49152 for ids in seen)
    assert prompts(DECODE, 512, "1") == prompts(DECODE, 512, "1")


def test_families_of_scenarios() -> None:
    assert [each.name for each in scenarios_named(["context"])] == ["context-128", "context-1024", "context-4096"]
    assert [each.batch for each in scenarios_named(["decode", "batch"])] == [1, 4, 8, 16, 32]
    assert scenarios_named(["all"]) == list(SCENARIOS.values())
    with pytest.raises(BadRequest, match="--scenario is 'decoding'"):
        scenarios_named(["decoding"])


# Checkpoints


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny checkpoints are made."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def tiny(cache: Path) -> checkpoints.Source:
    """The tiny shape in bfloat16, its kernels compiled: engines that start together would each compile them."""
    source = checkpoints.make("tiny", "bf16", cache, str)
    with LLM(source.folder) as llm:
        llm.generate([1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True))
    return source


def test_a_made_checkpoint_opens_and_runs(tiny: checkpoints.Source) -> None:
    with LLM(tiny.folder) as llm:
        assert llm.vocab_size == len({token for token in range(512) if llm.tokenizer.token(token).bytes}) == 512
        assert llm.model.dtype == "bfloat16"
        assert len(llm.encode("import this")) > 1
        found = llm.generate(list(range(300, 316)), SamplingParams(max_tokens=4, ignore_eos=True))
        assert not isinstance(found, list)
        assert len(found.ids) == 4


def test_both_precisions_hold_the_same_numbers(cache: Path, tiny: checkpoints.Source) -> None:
    from safetensors.torch import load_file

    exact = load_file(checkpoints.make("tiny", "fp32", cache, str).folder / "model.safetensors")
    rounded = load_file(tiny.folder / "model.safetensors")
    assert {name: tensor.bfloat16().equal(rounded[name]) for name, tensor in exact.items()} == dict.fromkeys(
        exact, True
    )
    spreads = [tensor.std().item() for name, tensor in exact.items() if "proj" in name]
    assert all(0.018 < deviation < 0.022 for deviation in spreads)


def test_shapes_have_the_sizes_of_the_models_they_are_named_after() -> None:
    def count(name: str) -> int:
        total = 0
        for sizes in tensors_of(SHAPES[name]).values():
            total += sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
        return total

    assert count("smol-135m") == 134_515_008
    assert count("llama-1b") == 1_235_814_400
    assert count("opt-125m") == 125_239_296


def test_a_checkpoint_half_made_is_made_again(tmp_path: Path) -> None:
    def stop_in_the_middle() -> None:
        with checkpoints.written_whole(tmp_path / "new") as part:
            (part / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_in_the_middle()
    assert list(tmp_path.iterdir()) == []


def test_only_what_a_step_reads_is_counted(cache: Path, tiny: checkpoints.Source) -> None:
    names = tensors_of(SHAPES["tiny"])
    assert checkpoints.count_read(tiny.folder) == sum(
        sizes[0] * (sizes[1] if len(sizes) > 1 else 1) for sizes in names.values()
    )


# What is converted for llama.cpp


def test_names_and_order_of_a_gguf() -> None:
    import torch

    assert gguf_file.gguf_name("model.layers.7.mlp.down_proj.weight") == "blk.7.ffn_down.weight"
    assert gguf_file.gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_file.gguf_name("model.norm.weight") == "output_norm.weight"
    config = {"num_attention_heads": 2, "num_key_value_heads": 1}
    rows = torch.arange(8.0)[:, None]  # two heads of four: the halves (0 1)(2 3) and (4 5)(6 7)
    mixed = gguf_file.in_pairs("model.layers.0.self_attn.q_proj.weight", rows, config)
    assert mixed[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_rotary_factors_are_those_of_the_model() -> None:
    from byhand.config import ConfigFields
    from byhand.layers.rope import RopeParameters, inverse_frequencies

    config = SHAPES["llama-1b"]
    plain = {**config, "rope_scaling": None}
    scaled, unscaled = (
        inverse_frequencies(RopeParameters.from_json(ConfigFields(each)), 64) for each in (config, plain)
    )
    assert gguf_file.rotary_factors(plain) is None
    assert gguf_file.rotary_factors(config).tolist() == pytest.approx((unscaled / scaled).tolist(), rel=1e-5)


# Processes


def plan_for(tiny: checkpoints.Source, cache: Path, said: list[str], scenario: Scenario = DECODE, **more: Any) -> Plan:
    """A plan of two rounds on the tiny checkpoint."""
    return Plan(tiny, "bf16", scenario, 1, cache, 2, tell=said.append, **more)


class SmallProbe:
    """A probe that gives a number at once: these tests are not about the machine."""

    def __enter__(self) -> Callable[[], float]:
        return lambda: 10.0

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reading of half a gigabyte in tests."""
    monkeypatch.setattr(run, "machine_probe", lambda threads: SmallProbe())
    monkeypatch.setattr(run, "BESIDE_WEIGHTS", 0.0)


@pytest.mark.usefixtures("quick_probe")
def test_who_cannot_open_or_dies_is_told_and_the_others_go_on(
    tiny: checkpoints.Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    ghost = Contestant("ghost f", "byhand", "benchmarks.peers.no_such_adapter", "f")
    victim = Contestant("victim bf16", "byhand", run.OUR_MODULE, "bf16")
    pair = run.Bench.pair

    def kill_in_round_one(bench: run.Bench, opponent: str, round_: int, ours_first: bool) -> None:
        if (opponent, round_) == (victim.label, 1):
            os.kill(bench.workers[opponent].process.pid, signal.SIGKILL)
        pair(bench, opponent, round_, ours_first)

    monkeypatch.setattr(run.Bench, "pair", kill_in_round_one)
    entry = campaign.run(plan_for(tiny, cache, said, opponents=[ghost, victim]))
    told = {
        "ghost f": "ghost f: ModuleNotFoundError: No module named 'benchmarks.peers.no_such_adapter'",
        "victim bf16": "victim bf16: its process ended with code -9",
    }
    assert said == list(told.values())
    assert {failure["label"]: failure["sentence"] for failure in entry["failures"]} == told
    assert [(each["opponent"], each["round"], each["first"]) for each in entry["pairs"]] == [
        (CONTROL, 0, "byhand"),
        ("victim bf16", 0, "victim bf16"),
        (CONTROL, 1, CONTROL),
    ]
    assert all(len(each[side]["stamps"]) == 6 for each in entry["pairs"] for side in ("ours", "theirs"))
    assert [facts["label"] for facts in entry["contestants"]] == ["byhand", CONTROL, "victim bf16"]
    assert len({tuple(facts["ids"]) for facts in entry["contestants"]}) == 1
    assert 0.01 < entry["summary"]["opponents"][0]["ratio"]["median"] < 100
    # Two tiny layers, the head and nothing else, in bfloat16; the embedding is the head.
    matrices = 512 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    assert entry["contestants"][0]["weight_bytes"] == 2 * matrices


def test_a_worker_says_why_it_cannot(tmp_path: Path) -> None:
    with Worker("one") as worker:
        with pytest.raises(EngineFailed, match="one: ModuleNotFoundError"):
            worker.ask("open", module="nobody", folder=".", form="bf16", threads=1, warm_up=[[1]], new=1)
        with pytest.raises(EngineFailed, match="one: KeyError: 'sing'"):
            worker.ask("sing")
        assert worker.settle()
    with pytest.raises(EngineFailed, match=r"two: .*nowhere cannot be run"):
        Worker("two", python=str(tmp_path / "nowhere"))


def test_what_is_printed_cannot_spoil_the_pipe(tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"""#!{sys.executable}
import os, resource, sys
ask = resource.getrusage
resource.getrusage = lambda who: (os.write(1, b"hello from a library\\n"), ask(who))[1]
exec(sys.argv[-1], {{"__name__": "__main__"}})
""")
    interpreter.chmod(0o755)
    with Worker("noisy", python=str(interpreter)) as worker:
        assert worker.ask("memory")["peak"] > 1_000_000


def test_cold_starts_forks_and_prefixes(tiny: checkpoints.Source, cache: Path) -> None:
    said: list[str] = []
    small = {name: replace(SCENARIOS[name], prompt=64, new=2, batch=1) for name in ("cold", "prefix")}
    small["forks"] = replace(SCENARIOS["forks"], prompt=64, new=2, batch=3)
    cold = campaign.run(replace(plan_for(tiny, cache, said, small["cold"]), rounds=1))
    [start] = cold["summary"]["starts"]
    assert start["seconds"]["count"] == 1
    assert sum(start["parts"].values()) <= start["seconds"]["median"] * 1.5
    assert start["memory"]["peak_anonymous"] > start["memory"]["held"]
    assert cold["imports"]["anonymous"] > 50e6
    for name in ("forks", "prefix"):
        entry = campaign.run(plan_for(tiny, cache, said, small[name]))
        assert [figures["count"] for figures in entry["summary"]["ways"].values()] == [2, 2]
    assert said == []


# Results and the command line


def test_results_replace_their_own_entry_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    entry = {"model": "m", "precision": "bf16", "scenario": "decode", "options": {}, "x": 1 / 3}
    results.save(path, entry)
    results.save(path, {**entry, "options": {"prefill": "fast"}})
    results.save(path, {**entry, "x": 2.0})
    assert [(each["options"], each["x"]) for each in results.read(path)] == [
        ({"prefill": "fast"}, 0.3333333),
        ({}, 2.0),
    ]
    path.write_text("{}")
    with pytest.raises(BadRequest, match="holds no results"):
        results.read(path)


def test_every_peer_says_what_it_runs() -> None:
    for peer in PEERS.values():
        for precision, forms in peer.forms.items():
            assert precision in engines.PRECISIONS
            assert all(peer.runs[form] for form in forms)
        assert peer.module.startswith("benchmarks.peers.")
        name = peer.module.rpartition(".")[2]
        adapter = Path(peers_of_byhand.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        assert "class Adapter" in adapter
        assert ("def convert(" in adapter) == peer.converts


def test_which_peers_run(monkeypatch: pytest.MonkeyPatch, tiny: checkpoints.Source) -> None:
    said: list[str] = []
    monkeypatch.setattr(peers_of_byhand, "is_installed", lambda peer, python: peer.name != "openvino")
    request = campaign.Request(scenarios=[DECODE], tell=said.append)
    peers = campaign.peers_asked(request)
    assert [peer.name for peer in peers] == ["transformers", "llama.cpp", "onnxruntime", "ctranslate2"]
    assert said == ["not installed, so left out: openvino (in byhand's own folder, pip install '.[peers]' brings them)"]
    with pytest.raises(BadRequest, match="openvino: not installed"):
        campaign.peers_asked(replace(request, peers=["openvino"]))
    labels = [each.label for each in campaign.opponents(peers, "int4", tiny, DECODE)]
    assert labels == ["llama.cpp q4_0", "llama.cpp q4_k_m", "onnxruntime int4"]
    batch = [each.label for each in campaign.opponents(peers, "bf16", tiny, SCENARIOS["batch-4"])]
    assert batch == ["transformers bf16", "llama.cpp bf16", "onnxruntime fp32", "ctranslate2 float32"]
    opt = replace(tiny, model_type="opt")
    assert [each.engine for each in campaign.opponents(peers, "fp32", opt, DECODE)] == ["transformers", "ctranslate2"]


def test_a_wheel_measures_byhand_alone_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr(engines, "BENCHMARKS", tmp_path)
    request = campaign.Request(scenarios=[DECODE], tell=said.append)
    assert campaign.peers_asked(replace(request, peers=["none"])) == []
    assert said == []
    assert campaign.peers_asked(request) == []
    assert said == [f"byhand alone: {campaign.FROM_A_CHECKOUT}"]
    with pytest.raises(BadRequest, match=r"--peers is 'llama.cpp vllm'; other engines are measured from a checkout"):
        campaign.peers_asked(replace(request, peers=["llama.cpp", "vllm"]))


@pytest.fixture
def no_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits, at once."""
    machine = {
        "model": "",
        "precision": "",
        "scenario": "machine",
        "options": {},
        "machine": results.machine(1),
        "summary": {"bandwidth": {"best": 10.0, "patterns": {"one": 10.0}}, "matrix": {"float32": 100.0}},
    }
    monkeypatch.setattr(campaign, "probe_machine", lambda threads: machine)


@pytest.mark.usefixtures("quick_probe", "no_matrices")
def test_quick(tiny: checkpoints.Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", "--quick", "--model", str(tiny.folder), "--threads", "1", "--rounds", "1"]
    out = tmp_path / "out.json"
    more = ["--peers", "none", "--out", str(out), "--scenario", "decode", "context-4096"]
    assert main([*line, *more, "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [entry["scenario"] for entry in document["entries"]] == ["machine", "decode"]
    assert document["entries"][1]["summary"]["ours"]["per_second"] > 0
    assert "reads 4096 tokens: context-4096 is left out" in printed.err
    assert [results.key_of(entry) for entry in results.read(out)] == [
        results.key_of(each) for each in document["entries"]
    ]
    assert main([*line, *more, "--skip-done"]) == 0
    assert "is there already" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_probe", "no_matrices")
def test_the_table_and_the_profile(
    tiny: checkpoints.Source, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # on a narrow terminal, wide figures shorten the names
    monkeypatch.setitem(SCENARIOS, "profile", replace(SCENARIOS["profile"], prompt=16, new=3))
    monkeypatch.setitem(SCENARIOS, "decode", DECODE)
    line = ["bench", "--model", str(tiny.folder), "--threads", "1", "--rounds", "1", "--peers", "none"]
    assert main([*line, "--scenario", "decode", "profile"]) == 0
    printed, told = capsys.readouterr()
    assert "memory read    10.0 GB/s" in printed
    assert CONTROL in printed, told
    for part in ("attention", "gate, up", "down", "head", "choice", "record"):
        assert part in printed
    assert re.search(r"(\d+) of \1 blocks, the last norm among them, run as one call$", printed, re.M)


def test_the_profile_says_what_is_not_captured() -> None:
    captured = {"blocks": 3, "captured": 2, "torch": ["add", "mul"], "uncaptured": ["a reason"]}
    assert _of_captured(captured) == (
        "2 of 3 blocks, the last norm among them, run as one call; between kernels torch computes add, mul; "
        "not captured: a reason"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shape", "huge"], "--shape is 'huge'; it must be one of smol-135m"),
        (["--precision", "int3"], "--precision is 'int3'; it must be one of fp32"),
        (["--scenario", "sleep"], "--scenario is 'sleep'"),
        (["--peers", "vllm"], "--peers is 'vllm'"),
        (["--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["--python", "peers"], "--python: 'peers' is not of the form ENGINE=PATH"),
        (["--llm", "fast"], "--llm: 'fast' is not of the form NAME=VALUE"),
        (["--model", "x", "--shape", "tiny"], "--model and --shape cannot go together"),
        (["--out", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--cache", "/nowhere/at/all"], "/nowhere/at/all is no folder"),
        (["--python", "peers=/nowhere/python"], "/nowhere/python cannot be run"),
        (["--peers", "none", "--model", "/nowhere"], "/nowhere does not exist"),
    ],
)
@pytest.mark.usefixtures("no_matrices")
def test_bad_input(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert sys.executable not in printed.err
