"""The plan is true: the engine issues the nodes that were planned from the header alone, and no others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import pyllm
from pyllm import models
from pyllm.config import EngineConfig
from pyllm.engine import core
from pyllm.errors import ConfigError, UnsupportedError
from pyllm.routes import flags as flags_module
from pyllm.routes.decision import decide
from pyllm.routes.devices import DEVICES
from pyllm.routes.flags import PAD, Flags, Memory, speculation_of, target_memory
from pyllm.routes.header import read_header
from pyllm.routes.key import Key, Node
from pyllm.routes.plan import plan
from pyllm.routes.trace import node_of
from tests.conftest import prompt_tokens
from tests.routes import tiny_models

DEVICE = DEVICES["sm_86"]
DRAFTS = json.loads(Path(__file__).with_name("draft_nodes.json").read_text(encoding="utf-8"))["cases"]


def alike(entry, node):
    """Whether ``node`` is the entry's but for its query rows, slots and cells."""
    planned = entry.node
    # A part of several slots' caches is not one piece; a whole is.
    same = replace(node, n_q=planned.n_q, n_kv=planned.n_kv, streams=planned.streams, dense=planned.dense) == planned
    return same and node.n_kv <= planned.n_kv and node.n_kv % PAD == 0


def within(rows, node):
    """Whether ``node`` has at most so many query rows: one row of more slots than there is room for takes one more than a micro-batch has."""
    return node.n_q * node.streams <= rows or (node.n_q, node.streams) == (1, rows + 1)


def fits(entry, node):
    """Whether ``node`` is the entry's, or a smaller one."""
    return alike(entry, node) and within(entry.node.n_q * entry.node.streams, node)


#: Cells of a slot that a run below reads: those of 264 tokens.
FILLED = 512


def traced(config):
    """Every node of a run that fills the prompt's micro-batches, all slots, and more than 256 cells of each."""
    if config.spec is not None:
        config = config.model_copy(update={"spec": config.spec.model_copy(update={"depth_control": False})})
    with pyllm.LLM(**config.model_dump()) as llm:
        # To each its share of a common cache.
        length = 300 // config.slots if config.unified else 252
        llm.generate(prompt_tokens(0, length), max_tokens=2, temperature=0)
        llm.generate([prompt_tokens(salt, length) for salt in range(config.slots)], max_tokens=12, temperature=0)
        if config.spec is not None:
            # Plain steps of all slots at once: drafts end at another step in each.
            llm.generate([prompt_tokens(salt, length) for salt in range(config.slots)], max_tokens=12, temperature=0, speculate=False)
        return [node_of(node) for node in llm.attention_nodes()]


SETTINGS = [
    {},
    {"slots": 2},
    {"slots": 3, "unified": True},
    {"slots": 2, "kv_types": ("q4_0", "f16")},
    {"slots": 2, "kv_types": "iq4_nl"},
    {"kv_types": ("f32", "bf16")},
    {"swa_full": True, "kv_types": "q8_0"},
]
SPECULATION = [
    # More slots than a micro-batch has room for, and drafts that it cannot hold together.
    ("llama", None, {"slots": 4, "ubatch": 2}),
    ("llama", "llama-dflash", {"spec": "dflash", "slots": 3, "ubatch": 16}),
    ("qwen35", None, {"spec": "mtp", "slots": 4, "ubatch": 8}),
    ("qwen35", None, {"spec": "mtp", "slots": 3, "ubatch": 8, "unified": True}),
    ("nemotron-h", None, {"slots": 3, "unified": True}),
    # Windows over several pads.
    ("gemma4", None, {"ubatch": 240}),
    ("gemma4", None, {"slots": 2, "ubatch": 200}),
    ("gemma4", None, {"slots": 8, "unified": True}),
    ("gemma4", "gemma4-assistant", {"spec": "mtp", "slots": 2}),
    ("gemma4-31b", "gemma4-31b-assistant", {"spec": {"method": "mtp", "num_speculative_tokens": 5}}),
    ("llama", "llama-dflash", {"spec": "dflash", "slots": 3}),
    ("llama", "llama-dflash", {"spec": "dflash", "slots": 3, "unified": True}),
    ("qwen35", None, {"spec": "mtp", "slots": 2}),
    ("nemotron-h-moe", None, {"spec": {"method": "mtp", "num_speculative_tokens": 2}, "kv_types": "q8_0"}),
    ("step35", None, {"spec": "mtp"}),
    ("llama", None, {"spec": {"types": "ngram-simple", "n_max": 6}}),
]
CASES = (
    [("gemma4", None, settings) for settings in SETTINGS]
    + [(name, None, {"slots": 2}) for name in ("llama", "gemma4-12b", "qwen35", "nemotron-h", "step35")]
    + SPECULATION
)


def check(config):
    model = read_header(config.model)
    draft = read_header(config.draft[0]) if config.draft else None
    planned = plan(model, draft, Flags.of(config), [DEVICE])
    entries = [entry for entry in planned.entries if entry.part == "target"]
    issued = traced(config)
    for node in issued:
        assert any(fits(entry, node) for entry in entries), node
    for entry in entries:
        if config.spec and config.spec.types[0].startswith("ngram") and entry.phase == "verify":
            continue  # what they draft depends on the text
        # Cells are filled as far as this run goes; the rest is as planned.
        reached = max(node.n_kv for node in issued if node.d_k == entry.node.d_k)
        if not config.unified:
            assert reached == min(FILLED, max(one.node.n_kv for one in entries if one.node.d_k == entry.node.d_k))
        wanted = replace(entry.node, n_kv=min(entry.node.n_kv, reached))
        near = [node for node in issued if replace(node, dense=wanted.dense, n_kv=wanted.n_kv) == wanted]
        assert near, entry
        if entry.phase == "decode" and entry.node.n_kv <= reached:
            assert entry.node in near
    # Attention is where the header says it is: as many nodes in a graph as there are such layers.
    kinds = {replace(entry.node, n_q=1, streams=1, n_kv=PAD, dense=True) for entry in entries}
    assert kinds == {replace(node, n_q=1, streams=1, n_kv=PAD, dense=True) for node in issued}


@pytest.mark.parametrize(("name", "draft", "settings"), CASES, ids=lambda value: json.dumps(value) if isinstance(value, dict) else value)
def test_the_engine_issues_the_planned_nodes(name, draft, settings):
    slots = settings.get("slots", 1)
    fixed = {"ctx": 512 if settings.get("unified") else 512 * slots, "ubatch": 32, "flash_attn": "on", "threads": 1, "trace": True}
    check(EngineConfig(model=models.make(name), draft=draft and models.make(draft), **fixed | settings))


@pytest.mark.parametrize("architecture", tiny_models.MODELS)
def test_it_does_for_every_kind_of_attention(architecture, tmp_path):
    path = tiny_models.make(architecture, tmp_path / "model.gguf")
    check(EngineConfig(model=path, slots=2, ctx=1024, ubatch=32, flash_attn="on", threads=1, trace=True))


@pytest.mark.parametrize(
    ("kind", "rows", "active", "found"),
    [
        ({}, 4, 2, (4, 2)),
        ({}, 4, 3, (2, 3)),
        ({}, 1, 12, (1, 9)),
        ({"unified": True}, 4, 3, (8, 1)),
        ({"equal": True, "unified": True}, 4, 3, (6, 1)),
        # Of four slots one goes alone, another one, and the last two together: counted in a trace of qwen35.
        ({"equal": True, "tail": 4}, 4, 4, (4, 2)),
        ({"equal": True, "tail": 4, "unified": True}, 4, 3, (8, 1)),
        ({"equal": True, "tail": 4}, 2, 4, (2, 4)),
    ],
)
def test_a_micro_batch_of_eight(kind, rows, active, found):
    memory = Memory(slots=16, cells=512, window_cells=256, ubatch=8, type_k="f16", type_v="f16", **{"unified": False} | kind)
    assert memory.load(rows, active) == found


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"slots": 3, "ctx": 1000}),
        ("llama", {"slots": 3, "ctx": 1000, "unified": True}),
        ("llama", {"ctx": 300, "batch": 64, "ubatch": 128}),
        ("gemma4", {}),
        ("qwen35", {"spec": {"types": "draft-mtp", "n_max": 20}, "ubatch": 8, "ctx": 512}),
    ],
)
def test_sizes_are_the_engines(name, settings):
    config = EngineConfig(model=models.make(name), threads=1, **settings)
    header, flags = read_header(config.model), Flags.of(config)
    memory = target_memory(header, flags, speculation_of(header, None, flags).depth)
    with pyllm.LLM(**config.model_dump()) as llm:
        info = llm._worker.core.info
    assert (memory.cells, memory.ubatch, memory.equal) == (info.n_ctx_seq, info.n_ubatch, name == "qwen35")


def test_layers_are_counted(tmp_path):
    """One node for each layer of an entry, in each graph."""
    config = EngineConfig(model=models.make("gemma4"), ctx=256, flash_attn="on", threads=1, trace=True)
    with pyllm.LLM(**config.model_dump()) as llm:
        llm.generate(prompt_tokens(0, 20), max_tokens=4, temperature=0)
        nodes = [node_of(node) for node in llm.attention_nodes()]
    for entry in plan(read_header(config.model), None, Flags.of(config), [DEVICE]).entries:
        if entry.phase == "decode":
            assert nodes.count(entry.node) == len(entry.layers)


@pytest.mark.parametrize("case", DRAFTS, ids=lambda case: f"{case['model']}-{case['spec']}-{case['slots']}")
def test_drafters_issue_the_planned_nodes(case):
    """Both contexts of unmodified upstream, recorded: see the file's note."""
    names = ("slots", "ctx", "ubatch", "unified", "kv_types", "swa_full", "draft_swa_full")
    flags = Flags(**{name: case[name] for name in names}, spec={"types": case["spec"], "n_max": case["n_max"]})
    draft = read_header(models.make(case["draft"])) if case["draft"] else None
    planned = plan(read_header(models.make(case["model"])), draft, flags, [DEVICE])
    for part in ("target", "draft"):
        recorded = [(one["graph"], Node(*one["node"])) for one in case["nodes"] if one["by"] == part]
        entries = [entry for entry in planned.entries if entry.part == part]
        for graph, node in recorded:
            assert any(fits(entry, node) for entry in entries if _is_of(entry, graph)), (part, graph, node)
        for entry in entries:
            of = [node for graph, node in recorded if _is_of(entry, graph)]
            reached = max(node.n_kv for node in of if node.n_q == entry.node.n_q)
            assert any(replace(node, dense=entry.node.dense) == replace(entry.node, n_kv=min(reached, entry.node.n_kv)) for node in of), entry


def _is_of(entry, graph):
    """Whether a graph of the recording is of an entry's phase; after a prompt of one row and after plain decoding a drafter reads one row."""
    if entry.part == "target":
        return {"prefill": graph.startswith("prompt"), "decode": graph == "decode", "verify": graph == "verify"}[entry.phase]
    if entry.step == "prompt":
        return graph.startswith("prompt")
    return graph in {"verify", "decode"} if entry.step == "verified" else graph == "draft"


def test_depths_are_the_engines():
    assert (flags_module.HEAD_DEPTH, flags_module.NGRAM_DEPTH, flags_module.RECURRENT_NGRAM_DEPTH) == (
        core.HEAD_DEPTH,
        core.NGRAM_DEPTH,
        core.RECURRENT_NGRAM_DEPTH,
    )


@pytest.fixture(scope="module")
def gemma():
    return read_header(models.make("gemma4")), read_header(models.make("gemma4-assistant"))


@hypothesis_settings(deadline=None)
@given(
    device=st.sampled_from(sorted(DEVICES)),
    slots=st.integers(1, 9),
    ctx=st.integers(600, 70000),
    ubatch=st.integers(1, 2048),
    unified=st.booleans(),
    swa_full=st.booleans(),
    types=st.tuples(*[st.sampled_from(["f16", "bf16", "q8_0", "q4_0", "iq4_nl", "f32"])] * 2),
    depth=st.integers(1, 16),
)
def test_every_planned_node_has_a_route(gemma, *, device, slots, ctx, ubatch, unified, swa_full, types, depth):
    flags = Flags(slots=slots, ctx=ctx, ubatch=ubatch, unified=unified, swa_full=swa_full, kv_types=types, n_max=depth)
    planned = plan(*gemma, flags, [DEVICES[device]])
    assert {entry.phase for entry in planned.entries} == {"prefill", "decode", "verify", "draft"}
    for entry in planned.entries:
        assert entry.decision == decide(Key(DEVICES[device], entry.node))
        assert entry.node.n_kv % PAD == 0
        assert within(ubatch, entry.node)
        for other in entry.others:
            assert other.route != entry.decision.route
            assert decide(Key(DEVICES[device], other.node)).route == other.route
            assert alike(entry, other.node)
            assert within(ubatch, other.node)


def test_what_smaller_nodes_take_is_said(gemma):
    """A window's cells are few, a short prompt's rows too: below eight rows RDNA's matrix units have no tile."""
    flags = Flags(ctx=4096)
    prefill = plan(gemma[0], None, flags, [DEVICES["gfx1100"]]).entries[0]
    assert prefill.decision.route == "mma"
    assert [other.route for other in prefill.others] == ["tile"]


def test_a_forced_route_decides_or_says_why_not(gemma):
    planned = plan(gemma[0], None, Flags(ctx=4096, force_route="decode=vec"), [DEVICE])
    decode = [entry for entry in planned.entries if entry.phase == "decode"]
    assert [(entry.kind, entry.decision and entry.decision.route) for entry in decode] == [("window", "vec"), ("global", None)]
    assert "cannot run this node" in decode[1].refusal
    assert planned.refused
    assert all(entry.decision.reason != "forced" for entry in planned.entries if entry.phase == "prefill")


@pytest.mark.parametrize(
    ("model", "draft", "settings", "devices", "error", "says"),
    [
        ("llama", None, {"spec": "mtp"}, 1, ConfigError, "has no prediction heads"),
        ("llama", "gemma4", {}, 1, ConfigError, "has no prediction heads"),
        ("llama", "llama", {"spec": "dflash"}, 1, ConfigError, "needs a block drafter"),
        ("llama", None, {"spec": "dflash"}, 1, ConfigError, "needs a block drafter, and there is no drafter"),
        ("llama", "llama-dflash", {"spec": "ngram"}, 1, ConfigError, "uses no draft model"),
        ("llama", "llama-dflash", {"slots": 8, "batch": 32}, 1, ConfigError, "cannot hold 8 slots"),
        ("llama", None, {}, 2, ConfigError, "2 devices for one plan"),
        ("llama", None, {"split_mode": "tensor"}, 1, ConfigError, "over 1 device"),
        ("llama", None, {"split_mode": "tensor", "tensor_split": (1, 1, 1)}, 2, ConfigError, "3 shares for 2 devices"),
        ("nemotron-h", None, {"split_mode": "tensor"}, 2, UnsupportedError, "refuses split mode `tensor`"),
    ],
)
def test_what_contradicts_itself_is_refused(*, model, draft, settings, devices, error, says):
    with pytest.raises(error, match=says) as caught:
        plan(read_header(models.make(model)), draft and read_header(models.make(draft)), Flags(**settings), [DEVICE] * devices)
    assert caught.value.hint


def test_types_that_do_not_fit_are_refused(tmp_path):
    mpt = read_header(tiny_models.make("mpt", tmp_path / "mpt.gguf"))
    with pytest.raises(UnsupportedError, match="K heads of 16 values, which q8_0 stores in blocks of 32"):
        plan(mpt, None, Flags(kv_types=("q8_0", "f16")), [DEVICE])
    latent = read_header(tiny_models.make("deepseek2", tmp_path / "deepseek2.gguf"))
    with pytest.raises(UnsupportedError, match="one latent cache, which cannot be q8_0 and f16"):
        plan(latent, None, Flags(kv_types=("q8_0", "f16")), [DEVICE])


def test_tensor_split_plans_each_slice():
    model, draft = (read_header(models.make(name)) for name in ("gemma4-31b", "gemma4-31b-assistant"))
    whole = plan(model, draft, Flags(ctx=4096), [DEVICE])
    halves = plan(model, draft, Flags(ctx=4096, split_mode="tensor"), [DEVICES["gfx1100"], DEVICE])
    assert {entry.place for entry in halves.entries} == {0, 1}
    assert {entry.device for entry in halves.entries} == {"gfx1100", "sm_86"}
    for entry in halves.entries:
        same = [one for one in whole.entries if (one.part, one.kind, one.phase, one.step) == (entry.part, entry.kind, entry.phase, entry.step)]
        assert (entry.node.n_head * 2, entry.node.n_head_kv * 2) == (same[0].node.n_head, same[0].node.n_head_kv)


def test_one_kv_head_lies_on_one_device():
    """So the devices take turns: layers 5, 17, … of 48 on the last, 11, 23, … on the first."""
    model = read_header(models.make("gemma4-12b", layers=24))
    entries = plan(model, None, Flags(ctx=4096, split_mode="tensor"), [DEVICE, DEVICE]).entries
    found = {(entry.layers, entry.place): entry.node.n_head for entry in entries if entry.kind == "global" and entry.phase == "decode"}
    assert found == {((5, 17), 1): 16, ((11, 23), 0): 16}


def test_a_drafter_whose_heads_lie_elsewhere_is_refused():
    """The target's last global layer is on device 0, the assistant's only one on device 1: upstream asserts on that."""
    model, draft = read_header(models.make("gemma4-12b", layers=12)), read_header(models.make("gemma4-12b-assistant"))
    with pytest.raises(UnsupportedError, match=r"KV heads split 0/1, but it reads the cache of layer 11 of .*, split 1/0"):
        plan(model, draft, Flags(ctx=4096, split_mode="tensor"), [DEVICE, DEVICE])
