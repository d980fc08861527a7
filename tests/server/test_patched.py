"""pyllm-server where the unmodified server of the pin dies, or starts what cannot work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from pyllm import models
from pyllm.errors import ServerError
from pyllm.server.binary import find_server, server_version
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from pathlib import Path


def start(*flags: object) -> ServerProcess:
    return ServerProcess(find_server(), [str(flag) for flag in flags])


def test_it_is_of_this_version():
    version = server_version(find_server())
    assert version is not None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["-np", 4, "-b", 16, "-ub", 16, "--spec-type", "draft-mtp", "--spec-draft-n-max", 8], "4 slots × (1 + 8 draft tokens) = 36"),
        (["-np", 8, "-b", 4, "-ub", 4], "4 tokens"),
        (["-np", 1, "-b", 32, "--spec-type", "ngram-map-k"], "32 tokens"),
    ],
)
def test_a_batch_below_the_drafts(flags, says):
    draft = ["-md", models.make("gemma4-assistant")] if "draft-mtp" in flags else []
    with pytest.raises(ServerError) as caught, start("-m", models.make("gemma4"), *draft, "-c", 4096, *flags):
        pass
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert says in text
    assert "signal" not in text


@pytest.mark.parametrize(
    ("target", "draft", "kind", "says"),
    [
        ("llama", "gemma4-assistant", "draft-mtp", "reads the KV cache of a `gemma4` target"),
        ("llama", "llama", "draft-dflash", "architecture `llama` is no `draft-dflash` drafter"),
        ("llama-other-vocab", "llama-dflash", "draft-dflash", "the drafter's vocabulary has 512 tokens, the target's 768"),
    ],
)
def test_a_drafter_of_another_target(target, draft, kind, says):
    with pytest.raises(ServerError) as caught, start("-m", models.make(target), "-md", models.make(draft), "--spec-type", kind, "-c", 512):
        pass
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert says in text
    assert "signal" not in text


@pytest.mark.parametrize(
    ("draft", "types", "says"),
    [
        ("qwen35-dflash", "draft-mtp,draft-dflash", "`draft-mtp` and `draft-dflash` together need 2 draft contexts, and there is one"),
        ("qwen35", "draft-mtp,draft-simple", "`draft-mtp` and `draft-simple` together need 2 draft contexts, and there is one"),
        ("qwen35-dflash", "draft-simple", "architecture `dflash` cannot draft by itself"),
    ],
)
def test_drafters_that_need_two_contexts(draft, types, says):
    """B19: heads inside the target's file and a drafter in one of its own; the server has one draft context."""
    with pytest.raises(ServerError) as caught, start("-m", models.make("qwen35"), "-md", models.make(draft), "--spec-type", types, "-c", 512):
        pass
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert says in text
    assert "signal" not in text


@pytest.mark.parametrize("p_min", [0.7, 0.95])
def test_a_used_slot_drafts_like_a_fresh_one(p_min):
    """B13: the first token of a prompt was paired with a hidden row of the request before, and all drafts saw that.

    How sure a random head is depends on its whole memory, and with a p_min so does the number of tokens that it drafts.
    """
    flags = ["-m", models.make("qwen35"), "--spec-type", "draft-mtp", "--spec-draft-n-max", 3, "--spec-draft-p-min", p_min, "-np", 1, "-c", 512]
    with start(*flags) as server, ServerClient(server.url) as client:
        fresh = client.completion(prompt_tokens(0, 30), n=80)
        assert 0 < fresh.drafted < 160
        for salt in (5, 6):
            client.completion(prompt_tokens(salt, 40), n=9)
            again = client.completion(prompt_tokens(0, 30), n=80)
            assert (again.drafted, again.accepted, again.tokens) == (fresh.drafted, fresh.accepted, fresh.tokens)


def test_a_drafter_of_another_width():
    with pytest.raises(ServerError) as caught, start("-m", models.make("llama", width=2), "-md", models.make("llama-dflash"), "--spec-type", "draft-dflash"):
        pass
    assert "rows of width 256, the target's are 512 wide" in f"{caught.value.message}\n{caught.value.hint}"


def test_a_target_without_layer_inputs():
    with (
        pytest.raises(ServerError) as caught,
        start("-m", models.make("step35"), "-md", models.make("llama-dflash"), "--spec-type", "draft-dflash", "-c", 512),
    ):
        pass
    assert "signal" not in f"{caught.value.message}\n{caught.value.hint}"


def test_the_end_of_the_context():
    """Drafts that are accepted whole used to end a request before its context was full."""
    target = models.make("llama", family="successor")
    prompt = prompt_tokens(0, 24)
    sizes = ["-np", 1, "-c", 256, "-b", 256]
    with start("-m", target, *sizes) as plain, ServerClient(plain.url) as client:
        expected = client.completion(prompt, n=500).tokens
    drafting = ["--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-n", 2, "--spec-ngram-map-k-size-m", 16]
    with start("-m", target, *sizes, *drafting) as server, ServerClient(server.url) as client:
        answer = client.completion(prompt, n=500)
        assert answer.tokens == expected
        assert answer.accepted > 0


def with_rope_sections(source: Path, out: Path) -> Path:
    """The file with M-RoPE sections in its header, as drafters for M-RoPE targets have them: its positions cannot be shifted."""
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    writer.add_array(f"{architecture}.rope.dimension_sections", [8, 0, 0, 0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_drafter_that_cannot_shift(tmp_path):
    """Only the target was asked whether it can shift; the drafter's cache then aborted."""
    draft = with_rope_sections(models.make("llama-dflash", family="successor"), tmp_path / "sections.gguf")
    flags = ["-md", draft, "--spec-type", "draft-dflash", "-np", 1, "-c", 512, "-b", 256, "-ub", 64, "--context-shift"]
    with start("-m", models.make("llama", family="successor"), *flags) as server, ServerClient(server.url) as client:
        answer = client.completion(prompt_tokens(0, 20), n=700)
        assert answer.finish == "length"
        assert 400 < len(answer.tokens) < 512
        assert server.alive
        assert len(client.completion(prompt_tokens(1, 20), n=5).tokens) == 5


def test_metrics_count_attention():
    with start("-m", models.make("llama"), "-c", 256, "--metrics") as process, ServerClient(process.url) as client:
        client.completion([300, 301, 302], n=4)
        counts = {name: count for name, count in client.metrics().items() if name.startswith("llamacpp:attention_nodes_total{")}
    assert counts['llamacpp:attention_nodes_total{device="CPU",route="cpu",phase="decode"}'] >= 3
    assert any('phase="verify"' in name or 'phase="prefill"' in name for name in counts)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--force-route", "mna"], "did you mean `mma`?"),
        (["--force-route", "decod=vec"], "phase `decod` is not known"),
        (["--routes", "/nowhere/table"], "`/nowhere/table`, which cannot be read"),
        (["--force-route"], "needs a value"),
    ],
)
def test_route_flags_that_mean_nothing(flags, says):
    with pytest.raises(ServerError) as caught, start("-m", models.make("llama"), "-c", 256, *flags):
        pass
    assert says in f"{caught.value.message}\n{caught.value.hint}"
