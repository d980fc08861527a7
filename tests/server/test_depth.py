"""Depth control in pyllm-server: what it drafts, what it says, and that the text stays the same."""

from __future__ import annotations

import concurrent.futures

import pytest

from pyllm import models
from pyllm.server.binary import find_server
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens

#: One thread: its time is the work's, also on a machine that does something else.
SIZES = ("-np", 2, "-c", 8192, "-b", 256, "-t", 1, "-tb", 1)
REASONS = ("idle", "learning", "limited", "off", "drafting", "probing", "baseline")


def start(*flags: object) -> ServerProcess:
    return ServerProcess(find_server(), [str(flag) for flag in (*flags, *SIZES, "--metrics")])


def lines(client: ServerClient) -> dict[str, float]:
    return {name.removeprefix("llamacpp:"): value for name, value in client.metrics().items()}


@pytest.fixture(scope="module")
def target():
    """A step long enough to be worth saving, so that a good draft pays and a bad one costs."""
    return models.make("llama", family="successor", size="60m", tensor_type="q8_0")


def drafter(error_rate):
    return models.make("llama-dflash", family="successor", size="60m", error_rate=error_rate)


def both(client, n, *, depth=None):
    """Two requests at once: their tokens, and how many were drafted and accepted."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda salt: client.completion(prompt_tokens(salt, 16), n=n, slot=salt, cache=False, depth=depth), (0, 1)))
    return [one.tokens for one in done], sum(one.drafted for one in done), sum(one.accepted for one in done)


@pytest.fixture(scope="module")
def plain(target):
    """What the model writes by itself."""
    with start("-m", target) as server, ServerClient(server.url) as client:
        return both(client, 160)[0]


def test_a_drafter_that_is_always_wrong_is_left_alone(target, plain):
    wrong = ("-m", target, "-md", drafter(1.0), "--spec-type", "draft-dflash", "--spec-draft-n-max", 7)
    with start(*wrong) as server, ServerClient(server.url) as client:
        tokens, uncontrolled, accepted = both(client, 160)
        assert (tokens, accepted) == (plain, 0)
        assert "depth_control_steps_total" not in lines(client)
    with start(*wrong, "--depth-control") as server, ServerClient(server.url) as client:
        tokens, drafted, accepted = both(client, 160)
        assert (tokens, accepted) == (plain, 0)
        # Only what it takes to find out.
        assert drafted < uncontrolled / 5
        found = lines(client)
    assert found["depth_control_steps_total"] > 100
    assert found["depth_control_seconds_total"] > 0
    assert found["depth_control_probing_seconds_total"] < 0.1 * found["depth_control_seconds_total"]


def test_a_drafter_that_is_right_is_used(target, plain):
    good = ("-m", target, "-md", drafter(0.0), "--spec-type", "draft-dflash", "--spec-draft-n-max", 7)
    with start(*good, "--depth-control") as server, ServerClient(server.url) as client:
        tokens, drafted, accepted = both(client, 160)
        assert tokens == plain
        assert 0 < accepted <= drafted
        assert lines(client)["depth_control_probes_total"] > 0
        # A request's own limit stays a limit.
        assert both(client, 40, depth=0)[1] == 0
        tokens, drafted, _ = both(client, 40, depth=1)
        assert tokens == [row[:40] for row in plain]


def rows(client):
    return lines(client)['drafter_rows_total{drafter="draft-dflash"}']


def test_a_drafter_that_is_left_alone_reads_nothing(target):
    """But the rows of prompts; and after a gap in its memory the text stays what it is."""
    wrong = ("-m", target, "-md", drafter(1.0), "--spec-type", "draft-dflash", "--spec-draft-n-max", 7, "--depth-control")
    with start(*wrong) as server, ServerClient(server.url) as client:
        for salt in (0, 1):
            long = client.completion(prompt_tokens(salt, 16), n=400, slot=0, cache=False)
        before = rows(client)
        assert before < 0.9 * 2 * (16 + 400)
        client.completion(prompt_tokens(2, 100), n=2, slot=1)
        assert rows(client) >= before + 100
        known = [*prompt_tokens(1, 16), *long.tokens]
        again, fresh = (client.completion(known, n=60, slot=slot, cache=cache) for slot, cache in ((0, True), (1, False)))
        assert again.cached_tokens > 100
        assert again.tokens == fresh.tokens


def test_slots_say_why_they_draft_what_they_draft(target):
    good = ("-m", target, "-md", drafter(0.0), "--spec-type", "draft-dflash", "--spec-draft-n-max", 7, "--depth-control")
    with start(*good) as server, ServerClient(server.url) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.completion, prompt_tokens(0, 16), n=400, slot=0, depth=0)
        seen = []
        while not running.done():
            found = lines(client)
            if 'slot_depth_chosen{slot="0"}' in found:
                seen.append([[reason for reason in REASONS if found[f'slot_depth_reason{{slot="{slot}",reason="{reason}"}}']] for slot in (0, 1)])
        assert running.result().drafted == 0
        assert [["limited"], ["idle"]] in seen
        assert all(len(one) == 1 for each in seen for one in each)


@pytest.mark.parametrize("name", ["falcon-h1", "qwen35"])
def test_memory_that_cannot_go_back_writes_the_same(name):
    """Replays of rejected blocks are nobody's measure, and are not cut."""
    flags = ("-m", models.make(name, family="successor", error_rate=0.5 if name == "qwen35" else 0.0))
    spec = ("--spec-type", "draft-mtp", "--spec-draft-n-max", 3) if name == "qwen35" else ("--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-n", 2)
    with start(*flags) as server, ServerClient(server.url) as client:
        expected = both(client, 120)[0]
    with start(*flags, *spec, "--depth-control") as server, ServerClient(server.url) as client:
        # Whether a draft of a tiny model pays is a matter of microseconds; some are tried.
        for _ in range(8):
            tokens, drafted, _ = both(client, 120)
            assert tokens == expected
            if drafted:
                break
        assert drafted > 0
        assert lines(client)["depth_control_steps_total"] > 0
