"""What a measurement's bursts come to: ratios with their intervals, times with their spread, shares of the limit."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from byhand.bench.ratios import Spread, paired_ratio, spread
from byhand.bench.run import CONTROL
from byhand.bench.scenarios import Scenario

Pair = dict[str, Any]


def _times(scenario: Scenario, pairs: Sequence[Pair], side: str) -> list[float]:
    return [scenario.seconds(pair[side]) for pair in pairs]


def _shares(weight_bytes: int, seconds: Sequence[float], pairs: Sequence[Pair]) -> Spread:
    """Weight bytes a second over the bandwidth around each burst: 1 is the wall."""
    probes = (statistics.mean(pair["bandwidth"]) * 1e9 for pair in pairs)
    return spread([weight_bytes / time / probe for time, probe in zip(seconds, probes, strict=True)])


def _side(scenario: Scenario, seconds: Sequence[float], pairs: Sequence[Pair], weight_bytes: int) -> dict[str, Any]:
    times = spread(seconds)
    figures: dict[str, Any] = {"seconds": times.to_json(), "per_second": scenario.per_second(times.median)}
    if scenario.kind == "decode":
        figures["share"] = _shares(weight_bytes, seconds, pairs).to_json()
    return figures


def summarise(scenario: Scenario, measurement: dict[str, Any]) -> dict[str, Any]:
    """byhand's figures over all its bursts, and every opponent's with the ratio of the two."""
    weights = {facts["label"]: facts["weight_bytes"] for facts in measurement["contestants"]}
    pairs: list[Pair] = measurement["pairs"]
    ours_label = measurement["contestants"][0]["label"]
    opponents = []
    for label in dict.fromkeys(pair["opponent"] for pair in pairs):
        met = [pair for pair in pairs if pair["opponent"] == label]
        ours, theirs = _times(scenario, met, "ours"), _times(scenario, met, "theirs")
        ratio = paired_ratio(ours, theirs).to_json()
        opponents.append({"label": label, "ratio": ratio, **_side(scenario, theirs, met, weights[label])})
    peers = [each for each in opponents if each["label"] != CONTROL]
    best = max(peers, key=lambda each: each["ratio"]["median"], default=None)
    return {
        "ours": _side(scenario, _times(scenario, pairs, "ours"), pairs, weights[ours_label]) if pairs else None,
        "opponents": opponents,
        "best_peer": best["label"] if best else None,
        "bandwidth": spread([probe for pair in pairs for probe in pair["bandwidth"]]).to_json() if pairs else None,
    }
