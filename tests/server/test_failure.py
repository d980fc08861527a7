"""Whom a failed decode ends, on a batch and slots like the server's. On a CPU no decode can be made to fail from outside."""

from __future__ import annotations

from tests.server.native import run

_STUBS = {
    "common.h": "#pragma once\n#include <string>\ntemplate <class... A> std::string string_format(const char * f, A...) { return f; }\n",
    "log.h": "#pragma once\n#include <cstdio>\n#define LOG_WRN(...) std::fprintf(stderr, __VA_ARGS__)\n",
    "llama.h": """#pragma once
struct llama_memory; struct llama_context { int removed = 0; };
inline llama_context * llama_get_memory(llama_context * ctx) { return ctx; }
inline bool llama_memory_seq_rm(llama_context * ctx, int seq, int, int) { ctx->removed |= 1 << seq; return true; }
""",
}

_SERVER = """
#include "server/failure.h"
#include <cstdio>
#include <memory>
#include <vector>

enum phase { IDLE, WAITING, BUSY };
struct task_of { int id; int id_parent; };
struct prompt_of { int n; int n_tokens() const { return n; } };
struct slot_of {
    int id; phase state; std::shared_ptr<task_of> task; int i_batch = -1; std::vector<int> spec_i_batch = {}; bool drafter_failed = false; prompt_of prompt{1};
    bool is_processing() const { return state != IDLE; }
};
struct token_of { int id_slot; };
struct batch_of {
    std::vector<token_of> tokens; bool has_embd = false; std::vector<float> embd; int n_embd = 0;
    int size() const { return (int) tokens.size(); }
};

int main() {
    // slots 0 and 1 verify blocks of three, 2 computes a prompt that 3 waits for, 4 one that comes in a later sub-batch, 5 waits for somebody else
    std::vector<slot_of> slots = {
        {0, BUSY, std::make_shared<task_of>(task_of{10, -1}), -1, {0, 1, 2}}, {1, BUSY, std::make_shared<task_of>(task_of{11, -1}), -1, {3, 4, 5}},
        {2, BUSY, std::make_shared<task_of>(task_of{12, -1}), 8}, {3, WAITING, std::make_shared<task_of>(task_of{13, 12})},
        {4, BUSY, std::make_shared<task_of>(task_of{14, -1}), 10}, {5, WAITING, std::make_shared<task_of>(task_of{15, 14})},
    };
    batch_of batch;
    for (int slot : {0, 0, 0, 1, 1, 1, 2, 2, 2, 4, 4}) { batch.tokens.push_back({slot}); }

    // the sub-batch [3, 8) fails: slot 1 and the first two of three tokens of slot 2
    const auto failed = pyllm::server::take_out_failed(batch, slots, 3, 5, WAITING);
    for (const auto * slot : failed) { std::printf("%d ", slot->id); }
    std::printf("|");
    for (const auto & token : batch.tokens) { std::printf(" %d", token.id_slot); }
    std::printf(" | %d %d %d", slots[4].i_batch, slots[0].spec_i_batch.back(), (int) slots[1].spec_i_batch.size());

    llama_context draft;
    pyllm::server::stop_drafting(batch, slots, 0, 3, &draft);
    std::printf(" | %d %d %d", slots[0].drafter_failed, slots[4].drafter_failed, draft.removed);
}
"""


def test_those_in_the_sub_batch_and_those_that_wait_for_them(tmp_path):
    ended, left, places, drafting = run(_SERVER, tmp_path, stubs=_STUBS).split("|")
    assert ended.split() == ["1", "2", "3"]
    assert left.split() == ["0", "0", "0", "4", "4"]  # the rest of slot 2's prompt is not decoded either
    assert places.split() == ["4", "2", "0"]  # slot 4's output moved from 10 to 4, slot 0's block stayed
    assert drafting.split() == ["1", "0", "1"]
