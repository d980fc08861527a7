"""What an architecture does with attention beyond what its metadata say, read from the pinned upstream's ``src/models``.

Names are those of ``general.architecture``; ``tests/routes/test_header.py`` derives each table here again from upstream's source.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """Which layers have a sliding window where the file has no list, and how long it is.

    Every ``period``-th layer is global: the last of each period, with ``global_first`` the first; 0 means none, None that the file has to
    list them. ``size`` is the window in tokens where the file gives none (0: it has to), or even where it does (``fixed``). An ``optional``
    window is there only where the file gives one above 0.
    """

    period: int | None = None
    global_first: bool = False
    size: int = 0
    fixed: bool = False
    optional: bool = False


#: ``hparams.swa_type`` and ``load_swa_pattern`` in each ``load_arch_hparams``. Other architectures ignore a window in the file.
WINDOWS: dict[str, Window] = {
    "afmoe": Window(4, optional=True),
    "cohere2": Window(4),
    "cohere2moe": Window(4, global_first=True),
    "dflash": Window(optional=True),
    "exaone-moe": Window(4, size=128),
    "exaone4": Window(4, size=4096),
    "gemma2": Window(2, size=4096),
    "gemma3": Window(6, optional=True),
    "gemma3n": Window(5),
    "gemma4": Window(),
    "gemma4-assistant": Window(),
    "gpt-oss": Window(2),
    "granite_swa": Window(),
    "laguna": Window(4, global_first=True, optional=True),
    "lfm2": Window(0, optional=True),
    "llama4": Window(4, size=8192, fixed=True),
    "maple": Window(),
    "mellum": Window(4, optional=True),
    "mimo2": Window(),
    "muse-glimmer": Window(4),
    "olmo2": Window(4, optional=True),
    "plamo3": Window(8, optional=True),
    "smallthinker": Window(4, global_first=True, size=4096, fixed=True, optional=True),
    "spark2_5": Window(),
    "step35": Window(),
}

#: Only this size of exaone4 has a window.
EXAONE4_WINDOWED_LAYERS = 64

#: Layers that are global in hybrids where the file does not list the recurrent ones: the last of each so many.
FULL_ATTENTION_INTERVAL: dict[str, int] = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4}

#: ``hparams.attn_soft_cap``: attention logits are capped.
CAPPED = frozenset({"gemma2"})

#: ``hparams.f_max_alibi_bias``: always, with so many layers only, or as ``attention.max_alibi_bias`` says.
ALIBI_ALWAYS = frozenset({"bloom", "refact"})
ALIBI_LAYERS: dict[str, int] = {"baichuan": 40}
ALIBI_KEYED = frozenset({"jais", "mpt"})

#: The first layers that have KV of their own where the file does not say how many of the last share theirs.
OWN_KV_LAYERS: dict[str, int] = {"gemma3n": 20}
#: Architectures whose last layers read the KV of the last layer of their kind that has its own (``create_memory``, ``reuse``).
SHARES_KV = frozenset({"gemma3n", "gemma4"})

#: A latent KV cache in which each query sees at most ``attention.indexer.top_k`` rows (``build_attn`` with ``top_k``).
INDEXED = frozenset({"deepseek32", "glm-dsa"})

#: Drafters that read their target's KV cache.
ASSISTANTS = frozenset({"gemma4-assistant"})
#: Drafters that fill a block of positions in one pass.
BLOCKS = frozenset({"dflash"})

#: No KV cache: encoders and diffusion models (``create_memory``, ``build_attn_inp_no_cache``).
CACHELESS = frozenset(
    {
        "bert",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
        "wavtokenizer-dec",
    }
)

#: Architectures with caches or graphs of their own that nothing here describes, and what they have.
UNDESCRIBED: dict[str, str] = {
    "deepseek4": "compressed caches",
    "dots3note": "latent caches of two widths",
    "eagle3": "a drafter of a kind that pyllm does not run",
    "glm5-next": "a pooled indexer",
    "graniteswitch": "a router layer",
    "hrm_text": "looped layers",
    "hy_v4": "an optional indexer",
    "minimax-m3": "block-sparse attention",
    "nanbeige": "looped layers",
    "qwen4exp": "sparse attention over an indexer",
    "t5": "an encoder and relative positions",
    "t5encoder": "an encoder and relative positions",
}

#: Attention without a fused node: upstream switches flash attention off (``llama_init_from_model``).
UNFUSED = frozenset({"grok"})

#: ``llm_arch_supports_sm_tensor``: refused with ``-sm tensor``.
NO_TENSOR_SPLIT = frozenset(
    {
        "bailingmoe3",
        "bitnet",
        "deepseek2",
        "deepseek32",
        "dots3note",
        "falcon-h1",
        "gemma3n",
        "glm-dsa",
        "glm5-next",
        "granitehybrid",
        "grok",
        "hy_v4",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "mamba",
        "mamba2",
        "minicpm3",
        "minimax-01",
        "minimax-m2",
        "minimax-m3",
        "mistral4",
        "mpt",
        "nemotron_h",
        "nemotron_h_moe",
        "olmo2",
        "olmoe",
        "plamo2",
        "qwen3tts",
        "qwen4exp",
        "t5",
    }
)

#: ``llm_arch_is_recurrent``: no attention at all.
RECURRENT = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})

#: ``llm_arch_is_hybrid``: some layers keep a recurrent state.
HYBRID = frozenset(
    {
        "bailingmoe3",
        "deepseek4",
        "falcon-h1",
        "glm5-next",
        "granitehybrid",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "minimax-01",
        "nemotron_h",
        "nemotron_h_moe",
        "plamo2",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "qwen4exp",
    }
)

#: ``llm_arch_supports_rs_rollback``: recurrent state can be taken back by some tokens, for which the last ones of a slot stay together.
ROLLS_BACK = frozenset(
    {
        "bailingmoe3",
        "deepseek4",
        "glm5-next",
        "kimi-k3",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen4exp",
    }
)
