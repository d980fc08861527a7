"""What /metrics says of drafts: whose they are, what they took, and why a slot has the draft it has."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from pyllm import models
from pyllm.server.binary import find_server
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens
from tests.server.native import run

STATES = ["idle", "drafting", "empty", "limited", "room", "replay", "failed", "off"]


def start(*flags: object) -> ServerProcess:
    return ServerProcess(find_server(), [str(flag) for flag in flags])


def drafts(client: ServerClient) -> dict[str, float]:
    """The lines about drafters and slots' drafts, without their common prefix."""
    lines = {name.removeprefix("llamacpp:"): value for name, value in client.metrics().items()}
    return {name: value for name, value in lines.items() if name.startswith(("drafter_", "slot_draft"))}


def state(lines: dict[str, float], slot: int) -> str:
    """The one state that a slot is in."""
    named = [name for name in STATES if lines[f'slot_draft_state{{slot="{slot}",state="{name}"}}'] == 1]
    assert len(named) == 1
    return named[0]


def watch(server: ServerProcess, body: dict[str, Any], drafter: str, wanted: str = "drafting") -> tuple[list[dict[str, Any]], list[tuple[str, float, float]]]:
    """Timings of requests in slot 0, and (state, limit, depth) of the slot whenever /metrics was read while they ran: until one read found ``wanted``.

    On a machine that has other work a request may have begun and ended between two reads.
    """
    answers: list[dict[str, Any]] = []
    request = {"temperature": 0, "id_slot": 0, **body}

    def ask() -> None:
        answers.append(httpx.post(f"{server.url}/completion", json=request, timeout=60, trust_env=False).json()["timings"])

    seen: list[tuple[str, float, float]] = []
    with ServerClient(server.url) as client:
        while len(answers) < 20 and wanted not in {name for name, _, _ in seen}:
            asking = threading.Thread(target=ask)
            asking.start()
            while asking.is_alive():
                lines = drafts(client)
                seen.append((state(lines, 0), lines['slot_draft_limit{slot="0"}'], lines[f'slot_draft_depth{{slot="0",drafter="{drafter}"}}']))
            asking.join()
    return answers, seen


@pytest.fixture(scope="module")
def dflash():
    """Two drafters in a chain, the second one always right."""
    target, draft = models.make("llama", family="successor"), models.make("llama-dflash", family="successor")
    types = ["--spec-type", "ngram-map-k,draft-dflash", "--spec-ngram-map-k-size-n", 48, "--spec-draft-n-max", 4]
    with start("-m", target, "-md", draft, *types, "-np", 2, "-c", 4096, "-b", 256, "-t", 1, "-tb", 1, "--metrics") as server:
        yield server


def test_a_slot_that_drafts(dflash):
    with ServerClient(dflash.url) as client:
        before = drafts(client)
        answers, seen = watch(dflash, {"prompt": prompt_tokens(0, 24), "n_predict": 1200, "cache_prompt": False}, "draft-dflash")
        after = drafts(client)
    assert ("drafting", 48.0, 4.0) in seen  # the longest draft of the chain is the n-grams'
    assert {name for name, _, _ in seen} <= {"idle", "drafting", "empty"}
    assert [state(after, slot) for slot in (0, 1)] == ["idle", "idle"]
    assert after['slot_draft_limit{slot="0"}'] == 0

    def grown(name: str, drafter: str = "draft-dflash") -> float:
        return after[f'{name}{{drafter="{drafter}"}}'] - before[f'{name}{{drafter="{drafter}"}}']

    def told(name: str) -> float:
        return sum(timings[name] for timings in answers)

    of_both = [grown("drafter_tokens_total", drafter) for drafter in ("ngram-map-k", "draft-dflash")]
    assert of_both[1] > 0
    assert sum(of_both) == told("draft_n")
    assert grown("drafter_accepted_tokens_total") + grown("drafter_accepted_tokens_total", "ngram-map-k") == told("draft_n_accepted")
    assert grown("drafter_drafts_total") >= of_both[1] / 4
    assert grown("drafter_rows_total") >= 24 * len(answers) + grown("drafter_drafts_total")
    assert grown("drafter_decodes_total") >= grown("drafter_drafts_total")
    assert 0 < grown("drafter_seconds_total") + grown("drafter_rows_seconds_total") <= told("prompt_ms") / 1e3 + told("predicted_ms") / 1e3 + 0.1
    assert grown("drafter_failures_total") == 0
    assert after['drafter_depth_max{drafter="draft-dflash"}'] == 4
    assert 'drafter_rows_total{drafter="ngram-map-k"}' not in after  # nobody counts that


def test_a_request_that_drafts_less(dflash):
    _, seen = watch(dflash, {"prompt": prompt_tokens(1, 24), "n_predict": 1200, "speculative.n_max": 2}, "draft-dflash")
    assert ("drafting", 2.0, 2.0) in seen
    assert max(limit for _, limit, _ in seen) == 2


def test_a_request_that_allows_no_draft(dflash):
    _, seen = watch(dflash, {"prompt": prompt_tokens(2, 24), "n_predict": 1200, "speculative.n_max": 0}, "draft-dflash", "limited")
    assert {name for name, _, _ in seen} == {"idle", "limited"}
    assert {(limit, depth) for _, limit, depth in seen} == {(0, 0)}


def test_a_drafter_that_is_off():
    family: dict[str, Any] = {"family": "successor", "seed": 12}
    target, draft = models.make("gemma4", **family), models.make("gemma4-assistant", **family, nan_after="always")
    with (
        start("-m", target, "-md", draft, "--spec-type", "draft-mtp", "-np", 2, "-c", 1024, "-t", 1, "-tb", 1, "--metrics") as server,
        ServerClient(server.url) as client,
    ):
        answers, seen = watch(server, {"prompt": prompt_tokens(0, 24), "n_predict": 400}, "draft-mtp", "failed")
        lines = drafts(client)
    assert "failed" in {name for name, _, _ in seen}
    assert lines['drafter_failures_total{drafter="draft-mtp"}'] == len(answers)
    off = [name for name in lines if name.startswith("slot_drafter_off{")]
    assert len(off) == 1
    assert off[0].startswith('slot_drafter_off{slot="0",drafter="draft-mtp",reason="')
    assert "NaN" in off[0]


def test_a_server_without_drafters():
    with start("-m", models.make("llama"), "-c", 256, "--metrics") as server, ServerClient(server.url) as client:
        client.completion([300, 301, 302], n=4)
        assert drafts(client) == {}


_WORDS = r"""
#include "draft/metrics.cpp"
#include "server/draft_state.h"
#include <cstdio>

struct limits { int n_max = -1; };
struct parameters { limits draft_limits; };
struct task_of { parameters params; };
struct guard { int plain = -1; bool plain_step_due(int n) const { return n == plain; } };
struct prompt_of { int n; int n_tokens() const { return n; } };
struct slot_of {
    int id; bool drafter_failed = false; guard replays; prompt_of prompt{10}; task_of body; task_of * task = &body;
    explicit slot_of(int slot) : id(slot) {}
};

int main() {
    using namespace pyllm;
    slot_of drafting(0), no_room(1), limited(2), replays(3), failed(4), off(5), empty(6);
    limited.body.params.draft_limits.n_max = 0;
    replays.replays.plain = 10;
    failed.drafter_failed = true;
    draft::drafter_report one;
    one.name = "draft-mtp";
    one.ours = true;
    one.off  = {"", "", "", "", "", "a \"word\", a \\ and\na line", ""};
    draft::tell_drafters({one}, {0, -1, -1, -1, -1, -1, -1});
    server::tell_limit(drafting, 9, 3);
    draft::tell_drafted(0, 2);
    server::tell_limit(no_room, -1, 3);
    server::tell_limit(limited, 0, 3);
    server::tell_limit(replays, 0, 3);
    server::tell_limit(failed, 0, 3);
    for (int slot : {5, 6}) { server::tell_limit(slot == 5 ? off : empty, 3, 3); draft::tell_drafted(slot, 0); }
    std::printf("%s", draft::prometheus().c_str());
}
"""


def test_words_of_each_state(tmp_path):
    lines = run(_WORDS, tmp_path).splitlines()
    found = [line for line in lines if line.startswith("llamacpp:slot_draft_state") and line.endswith(" 1")]
    assert found == [
        f'llamacpp:slot_draft_state{{slot="{slot}",state="{name}"}} 1'
        for slot, name in enumerate(["drafting", "room", "limited", "replay", "failed", "failed", "empty"])
    ]
    assert 'llamacpp:slot_draft_limit{slot="0"} 3' in lines
    assert 'llamacpp:slot_draft_limit{slot="1"} 0' in lines
    assert 'llamacpp:slot_draft_depth{slot="0",drafter="draft-mtp"} 2' in lines
    # quotes, backslashes and line breaks as the format wants them
    assert r'llamacpp:slot_drafter_off{slot="5",drafter="draft-mtp",reason="a \"word\", a \\ and\na line"} 1' in lines
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    assert {line.split("{")[0] for line in lines if not line.startswith("#")} <= helped
