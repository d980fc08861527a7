"""The guard of replayed drafts, compiled by itself: no near tie on a CPU is known that flips for ever."""

from __future__ import annotations

from tests.server.native import run

# A slot that verifies, is restored and replays. `flips`: how often in a row the verification at one position rejects what the one before chose.
_SLOT = """
#include "server/replay.h"
#include <cstdio>
#include <cstdlib>

int main(int, char ** argv) {
    const int flips = std::atoi(argv[1]), wanted = std::atoi(argv[2]);
    pyllm::server::replay_guard guard;
    long n_tokens = 10, restores = 0, plain = 0, cycles = 0;
    int  rejected = 0;
    bool replay = false;
    while (n_tokens < 10 + wanted && cycles < 100000) {
        ++cycles;
        if (!replay && guard.plain_step_due(n_tokens)) {
            ++plain; ++n_tokens; rejected = 0;
            continue;
        }
        if (rejected < flips) {
            ++rejected; ++restores;
            replay = guard.may_replay(replay, n_tokens);
            continue;
        }
        n_tokens += 2; rejected = 0; replay = false;
    }
    std::printf("%ld %ld %ld %ld\\n", n_tokens - 10, cycles, restores, plain);
}
"""


def play(tmp_path, flips, wanted=20):
    tokens, cycles, restores, plain = (int(word) for word in run(_SLOT, tmp_path, flips, wanted).split())
    return tokens, cycles, restores, plain


def test_a_draft_that_is_accepted_needs_no_replay(tmp_path):
    assert play(tmp_path, 0) == (20, 10, 0, 0)


def test_a_partial_draft_is_replayed_once(tmp_path):
    assert play(tmp_path, 1) == (20, 20, 10, 0)


def test_a_replay_that_is_rejected_gives_way_to_a_plain_step(tmp_path):
    """However often the tie would flip: a token every three cycles."""
    for flips in (2, 3, 1_000_000):
        assert play(tmp_path, flips) == (20, 60, 40, 20)
