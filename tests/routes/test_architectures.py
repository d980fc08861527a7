"""Tables of architectures, derived again from upstream's source."""

from __future__ import annotations

import re

import pytest

from pyllm.routes import architectures as known


@pytest.fixture(scope="module")
def source(upstream):
    """Upstream's architectures: enumerator, name, and the text of each class's hyperparameters, its base's where it has none."""
    folder = upstream.parent / "src"
    names = dict(re.findall(r"\{\s*(LLM_ARCH_\w+),\s*\"([^\"]+)\"", (folder / "llama-arch.cpp").read_text()))
    classes = dict(re.findall(r"case (LLM_ARCH_\w+):\s*\n?\s*return new (llama_model_\w+)\(", (folder / "llama-model.cpp").read_text()))
    bases = dict(re.findall(r"struct (llama_model_\w+) : public (llama_model_\w+)", (folder / "models" / "models.h").read_text()))
    files = {path.stem: path.read_text() for path in (folder / "models").glob("*.cpp")}
    pattern = re.compile(r"void (llama_model_\w+)::load_arch_hparams\(llama_model_loader & ?\w*\) \{(.*?)\n\}", re.DOTALL)
    bodies = dict(found for text in files.values() for found in pattern.findall(text))

    def hparams(owner):
        return bodies[owner] if owner in bodies else hparams(bases[owner])

    return {names[enumerator]: hparams(owner) for enumerator, owner in classes.items() if owner in bodies or owner in bases}, names, folder


def listed(text, start, names):
    """Names of the architectures whose cases a switch of a function answers first."""
    body = text[text.index(start) :]
    return {names[one] for one in re.findall(r"case (LLM_ARCH_\w+):", body[: body.index("return ")])} - {"(unknown)"}


def test_windows(source):
    bodies, _, _ = source
    windowed = {name for name, body in bodies.items() if re.search(r"swa_type\s*= LLAMA_SWA_TYPE_(STANDARD|CHUNKED)", body)}
    assert windowed - known.CACHELESS - set(known.UNDESCRIBED) == set(known.WINDOWS)
    for name, rule in known.WINDOWS.items():
        body = bodies[name]
        pattern = re.search(r"load_swa_pattern\(ml, (\d+)(?:, (?:/\*dense_first=\*/)?(true))?\)", body)
        if pattern:
            assert (rule.period, rule.global_first) == (int(pattern[1]), bool(pattern[2])), name
        elif name == "lfm2":
            assert rule.period == 0
            assert "is_swa_impl[il] = !hparams.is_recr_impl[il]" in body
        else:
            assert rule.period is None, name
            assert "LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN, hparams.is_swa_impl" in body, name
        size = re.search(r"hparams\.n_swa\s*= ([1-9]\d*);", body)
        assert rule.size == (int(size[1]) if size else 0), name
        optional = re.search(r"n_swa > 0", body) is not None
        assert rule.optional == optional, name
        # Where the file's number does not come last, it does not count.
        places = [found.start() for found in re.finditer(r"LLM_KV_ATTENTION_SLIDING_WINDOW,", body)]
        assert rule.fixed == bool(size and places and places[-1] < size.start()), name


def test_hybrids(source):
    bodies, names, folder = source
    text = (folder / "llama-arch.cpp").read_text()
    assert listed(text, "bool llm_arch_is_hybrid", names) == known.HYBRID
    assert listed(text, "bool llm_arch_is_recurrent", names) == known.RECURRENT
    assert listed(text, "bool llm_arch_supports_rs_rollback", names) == known.ROLLS_BACK
    assert listed(text, "bool llm_arch_supports_sm_tensor", names) == known.NO_TENSOR_SPLIT
    intervals = {name: int(found[1]) for name, body in bodies.items() if (found := re.search(r"full_attn_interval = (\d+)", body))}
    assert {name: size for name, size in intervals.items() if name not in known.UNDESCRIBED} == known.FULL_ATTENTION_INTERVAL
    # Elsewhere a layer without KV heads is recurrent, or all are.
    for name in known.HYBRID - set(known.UNDESCRIBED) - set(intervals):
        assert "n_head_kv(i" in bodies[name] or "is_recr_impl.end(), true" in bodies[name], name


def test_softcap_and_alibi(source):
    bodies, _, _ = source
    assert {name for name, body in bodies.items() if "attn_soft_cap = true" in body} == known.CAPPED
    fixed = {name for name, body in bodies.items() if "f_max_alibi_bias = 8.0f" in body} - known.CACHELESS
    assert fixed == known.ALIBI_ALWAYS | set(known.ALIBI_LAYERS)
    assert {name for name, body in bodies.items() if "LLM_KV_ATTENTION_MAX_ALIBI_BIAS" in body} == known.ALIBI_KEYED
    assert re.search(rf"case {known.ALIBI_LAYERS['baichuan']}: type = LLM_TYPE_13B", bodies["baichuan"])
    assert "n_layer() == 64" in bodies["exaone4"]
    assert known.EXAONE4_WINDOWED_LAYERS == 64


def test_caches(source):
    bodies, names, folder = source
    model = (folder / "llama-model.cpp").read_text()
    memory = model[model.index("llama_memory_i * llama_model::create_memory") :]
    without = {names[one] for one in re.findall(r"case (LLM_ARCH_\w+):", memory[: memory.index("res = nullptr")])}
    uncached = {path.stem for path in (folder / "models").glob("*.cpp") if "build_attn_inp_no_cache()" in path.read_text()}
    assert without | {"llama-embed"} == known.CACHELESS
    assert uncached <= known.CACHELESS | {"bert", "llama", "t5"}
    own = {name: int(found[1]) for name, body in bodies.items() if (found := re.search(r"n_layer_kv_from_start\s*= (\d+);", body))}
    assert own == known.OWN_KV_LAYERS
    assert {
        names[one] for one in re.findall(r"arch == (LLM_ARCH_\w+)", memory[memory.index("layer_reuse_cb reuse") : memory.index("reuse = [&]")])
    } == known.SHARES_KV
    # A latent cache holds K alone; its V is as long as the rank.
    latent = {name for name, body in bodies.items() if "LLM_KV_ATTENTION_KEY_LENGTH_MLA," in body} - set(known.UNDESCRIBED)
    assert latent == {"bailingmoe3", "deepseek2", "deepseek32", "glm-dsa", "kimi-k3", "kimi-linear", "mistral4"}
    # Special cases of the switch are described or refused.
    special = {names[one] for one in re.findall(r"case (LLM_ARCH_\w+):", memory[: memory.index("default:")])}
    assert special <= known.CACHELESS | set(known.UNDESCRIBED) | known.INDEXED | known.BLOCKS


def test_indexers(source):
    _, _, folder = source
    indexed = {path.stem for path in (folder / "models").glob("*.cpp") if re.search(r"top_k, kq_scale, il\)", path.read_text())}
    assert {name.replace("-", "_") for name in indexed} - {name.replace("-", "_") for name in known.UNDESCRIBED} == {
        name.replace("-", "_") for name in known.INDEXED
    }


def test_unfused(source):
    _, names, folder = source
    text = (folder / "llama-context.cpp").read_text()
    assert {names[one] for one in re.findall(r"model->arch == (LLM_ARCH_\w+)\) \{\s*\n\s*LLAMA_LOG_WARN\(\"%s: flash_attn is not", text)} == known.UNFUSED
