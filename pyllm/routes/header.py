"""What a model's header says about its attention, layer by layer, as upstream reads it.

Keys and defaults: ``src/llama-model.cpp`` (``load_hparams``) and ``src/models/*.cpp`` (``load_arch_hparams``) of the pinned upstream;
what is not in the file is in :mod:`pyllm.routes.architectures`. No tensor is loaded: their names and types are part of the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm.errors import ModelFormatError, UnsupportedError
from pyllm.routes import architectures as known
from pyllm.routes.axes import MAX_HEAD_DIM
from pyllm.routes.metadata import Metadata, read_metadata

if TYPE_CHECKING:
    from pathlib import Path

#: ``LLAMA_MAX_LAYERS``.
_MOST_LAYERS = 512

#: Block of a DFlash drafter whose file does not say: upstream's ``common/speculative.cpp``.
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of a model.

    ``kind`` is ``global``, ``window`` (sliding), ``latent`` (MLA: one K row for all heads, V is its front), ``recurrent`` or ``none``; the last
    two have no attention node, and 0 for its numbers. ``nextn`` marks a prediction head. ``reads`` is the layer whose KV cache it reads, its own
    unless KV is shared. ``top_k`` is the most KV rows that a query sees where an indexer chooses them, else 0. ``block`` counts the values that
    the type of its output projection stores together: a split over devices keeps them whole.
    """

    index: int
    kind: str
    d_k: int = 0
    d_v: int = 0
    n_head: int = 0
    n_head_kv: int = 0
    sinks: bool = False
    nextn: bool = False
    reads: int = -1
    top_k: int = 0
    block: int = 1

    @property
    def has_attention(self) -> bool:
        """Whether it issues an attention node."""
        return self.kind not in {"recurrent", "none"}


@dataclass(frozen=True)
class Header:
    """A model's attention. ``window`` counts tokens, 0 without; ``n_ctx_train`` is the context that it was trained with.

    ``drafter`` is ``assistant`` (reads its target's KV cache), ``block`` (fills ``block_size`` positions at once), or empty for models that
    generate by themselves. ``hybrid`` says that there is recurrent state, so that rolling back is bounded.
    """

    path: Path
    name: str
    architecture: str
    n_ctx_train: int
    layers: tuple[Layer, ...]
    window: int = 0
    softcap: bool = False
    alibi: bool = False
    hybrid: bool = False
    drafter: str = ""
    block_size: int = 0

    @property
    def trunk(self) -> tuple[Layer, ...]:
        """The layers that generate; of an assistant, those that draft."""
        return self.layers if self.drafter == "assistant" else tuple(layer for layer in self.layers if not layer.nextn)

    @property
    def heads(self) -> tuple[Layer, ...]:
        """The prediction heads inside the file."""
        return () if self.drafter else tuple(layer for layer in self.layers if layer.nextn)


def read_header(path: str | Path) -> Header:
    """Read the header of a GGUF file, without its weights.

    Raises:
        NotFoundError: no such file.
        ModelFormatError: not a GGUF model, or its metadata contradict each other.
        UnsupportedError: an architecture whose attention is not described here.
    """
    return header_of(read_metadata(path))


def header_of(meta: Metadata) -> Header:
    """The attention that ``meta`` describe.

    Raises:
        ModelFormatError: missing metadata, or such as contradict each other.
        UnsupportedError: an architecture whose attention is not described here.
    """
    architecture = meta.architecture
    _refuse(meta, architecture)
    n_layers = meta.require("block_count", int)
    if not 0 < n_layers <= _MOST_LAYERS:
        raise meta.wrong("block_count", n_layers, f"outside 1 … {_MOST_LAYERS}")
    n_nextn = meta.get("nextn_predict_layers", 0)
    if not 0 <= n_nextn <= n_layers:
        raise meta.wrong("nextn_predict_layers", n_nextn, f"outside 0 … {n_layers}")
    window = _window(meta, architecture, n_layers - n_nextn)
    n_ctx_train = meta.require("context_length", int)
    if n_ctx_train < 1:
        raise meta.wrong("context_length", n_ctx_train, "not a number of tokens")
    drafter = "assistant" if architecture in known.ASSISTANTS else "block" if architecture in known.BLOCKS else ""
    return Header(
        path=meta.path,
        name=str(meta.values.get("general.name", meta.path.stem)),
        architecture=architecture,
        n_ctx_train=n_ctx_train,
        layers=tuple(_Layers(meta, n_layers, n_nextn, window).all()),
        window=window,
        softcap=architecture in known.CAPPED,
        alibi=_alibi(meta, architecture, n_layers - n_nextn),
        hybrid=architecture in known.HYBRID or architecture in known.RECURRENT,
        drafter=drafter,
        block_size=meta.get("block_size", _BLOCK_SIZE) if drafter == "block" else 0,
    )


def _refuse(meta: Metadata, architecture: str) -> None:
    if architecture in known.CACHELESS:
        raise UnsupportedError(f"`{meta.path}` (architecture `{architecture}`) keeps no KV cache", "plan its node from numbers: --head, --heads, --n-q, --n-kv")
    if architecture in known.UNDESCRIBED:
        what = known.UNDESCRIBED[architecture]
        raise UnsupportedError(
            f"the attention of `{meta.path}` (architecture `{architecture}`: {what}) cannot be told from its header", "plan a recorded trace instead: --trace"
        )
    if architecture in known.UNFUSED:
        raise UnsupportedError(f"`{meta.path}` (architecture `{architecture}`) runs without flash attention: there is no attention node to route")


def _window(meta: Metadata, architecture: str, n_trunk: int) -> int:
    """Tokens of the sliding window, 0 without."""
    rule = known.WINDOWS.get(architecture)
    if rule is None or (architecture == "exaone4" and n_trunk != known.EXAONE4_WINDOWED_LAYERS):
        return 0
    given = meta.get("attention.sliding_window", -1)
    if given == 0 or (given < 0 and rule.optional):
        return 0
    if rule.fixed or (given < 0 and rule.size):
        return rule.size
    return given if given > 0 else meta.require("attention.sliding_window", int)


def _alibi(meta: Metadata, architecture: str, n_trunk: int) -> bool:
    if architecture in known.ALIBI_KEYED:
        return meta.get("attention.max_alibi_bias", 0.0) > 0
    return architecture in known.ALIBI_ALWAYS or known.ALIBI_LAYERS.get(architecture) == n_trunk


class _Layers:
    """Puts together what several keys say of each layer."""

    def __init__(self, meta: Metadata, n_layers: int, n_nextn: int, window: int) -> None:
        self.meta = meta
        self.architecture = meta.architecture
        self.n_layers = n_layers
        self.n_trunk = n_layers - n_nextn
        self.window = window
        self.n_head = self._per_layer("attention.head_count", [0] * n_layers)
        self.n_head_kv = self._per_layer("attention.head_count_kv", self.n_head)
        # Of recurrent models and, where the first layer has none, of all: 0 heads, and head dims from the keys alone.
        width = meta.get("embedding_length", 0) // self.n_head[0] if self.n_head[0] else 0
        self.d_k = meta.get("attention.key_length", width)
        self.d_v = meta.get("attention.value_length", width)
        self.d_k_window = meta.get("attention.key_length_swa", self.d_k)
        self.d_v_window = meta.get("attention.value_length_swa", self.d_v)
        self.latent = bool(meta.get("attention.key_length_mla", 0) and meta.get("attention.value_length_mla", 0))
        self.windowed = self._windowed()
        self.recurrent = self._recurrent()
        self.own_kv = self._own_kv()

    def all(self) -> list[Layer]:
        # A converted model may be without its prediction heads, which the metadata count all the same.
        stems = {name.split(".", 2)[1] for name in self.meta.tensors if name.startswith("blk.")}
        return [self._layer(index) for index in range(self.n_layers) if index < self.n_trunk or str(index) in stems]

    def _layer(self, index: int) -> Layer:
        n_head, n_head_kv = self.n_head[index], self.n_head_kv[index]
        nextn = index >= self.n_trunk
        if self.recurrent[index] or not n_head or not n_head_kv:
            feed_forward = self.meta.values.get(f"{self.architecture}.feed_forward_length")
            mixes = not isinstance(feed_forward, list) or index >= len(feed_forward) or feed_forward[index] == 0
            return Layer(index, "recurrent" if mixes and self.architecture in known.HYBRID | known.RECURRENT else "none", nextn=nextn)
        if n_head % n_head_kv:
            raise ModelFormatError(f"layer {index} of `{self.meta.path}` has {n_head} query heads over {n_head_kv} KV heads", "convert the model again")
        windowed = self.windowed[index]
        d_k = self.d_k_window if windowed else self.d_k
        # The graph of a latent cache takes as many values of a K row as V as the rank says (src/models/deepseek2.cpp).
        d_v = self.meta.require("attention.kv_lora_rank", int) if self.latent else self.d_v_window if windowed else self.d_v
        for key, value in (("key_length", d_k), ("value_length", d_v)):
            if not 0 < value <= MAX_HEAD_DIM:
                raise ModelFormatError(f"layer {index} of `{self.meta.path}` has {key} {value}, outside 1 … {MAX_HEAD_DIM}", "convert the model again")
        if self.latent and d_v > d_k:
            raise ModelFormatError(f"the latent rank of `{self.meta.path}` is {d_v}, over its key length {d_k}", "convert the model again")
        prefix = f"blk.{index}."
        output = self.meta.tensors.get(f"{prefix}attn_output.weight")
        return Layer(
            index=index,
            kind="latent" if self.latent else "window" if windowed else "global",
            d_k=d_k,
            d_v=d_v,
            n_head=n_head,
            n_head_kv=n_head_kv,
            sinks=f"{prefix}attn_sinks.weight" in self.meta.tensors,
            nextn=nextn,
            reads=self._reads(index, windowed=windowed),
            top_k=self.meta.require("attention.indexer.top_k", int) if self.architecture in known.INDEXED and not nextn else 0,
            block=output.block if output else 1,
        )

    def _reads(self, index: int, *, windowed: bool) -> int:
        """``create_memory``: the last layer of its kind that has KV of its own; the two before the shared ones are one of each."""
        return index if index < self.own_kv or index >= self.n_trunk else self.own_kv - (2 if windowed else 1)

    def _own_kv(self) -> int:
        """How many of the first layers have KV of their own."""
        if self.architecture not in known.SHARES_KV:
            return self.n_layers
        shared = self.meta.get("attention.shared_kv_layers", 0)
        own = min(self.n_layers, known.OWN_KV_LAYERS.get(self.architecture, self.n_layers - shared))
        if own < min(2, self.n_layers):
            raise self.meta.wrong("attention.shared_kv_layers", shared, f"of {self.n_layers} layers, which leaves no KV to share")
        return own

    def _windowed(self) -> list[bool]:
        rule = known.WINDOWS.get(self.architecture)
        if rule is None or not self.window:
            return [False] * self.n_layers
        listed = self.meta.values.get(f"{self.architecture}.attention.sliding_window_pattern")
        if isinstance(listed, list):
            return [bool(index < len(listed) and listed[index]) for index in range(self.n_layers)]
        period = self.meta.get("attention.sliding_window_pattern", rule.period) if rule.period is not None else None
        if period is None:
            raise ModelFormatError(
                f"`{self.meta.path}` has no list `{self.architecture}.attention.sliding_window_pattern`", "convert the model again with a newer llama.cpp"
            )
        if period < 0:
            raise self.meta.wrong("attention.sliding_window_pattern", period, "not a number of layers")
        which = 0 if rule.global_first else period - 1
        return [index < self.n_trunk and (period == 0 or index % period != which) for index in range(self.n_layers)]

    def _recurrent(self) -> list[bool]:
        if self.architecture in known.RECURRENT:
            return [True] * self.n_layers
        if self.architecture not in known.FULL_ATTENTION_INTERVAL:
            return [False] * self.n_layers
        listed = self.meta.values.get(f"{self.architecture}.attention.recurrent_layers")
        if listed is not None:
            return [bool(value) for value in self._per_layer("attention.recurrent_layers", [])]
        interval = self.meta.get("full_attention_interval", known.FULL_ATTENTION_INTERVAL[self.architecture])
        if interval < 1:
            raise self.meta.wrong("full_attention_interval", interval, "not a number of layers")
        return [index < self.n_trunk and (index + 1) % interval != 0 for index in range(self.n_layers)]

    def _per_layer(self, key: str, default: list[int]) -> list[int]:
        """One number for each layer, from one for all or a list of them."""
        value: Any = self.meta.values.get(f"{self.architecture}.{key}")
        if value is None:
            return default
        values = value if isinstance(value, list) else [value] * self.n_layers
        if len(values) != self.n_layers:
            raise self.meta.wrong(key, value, f"a list of {len(values)} for {self.n_layers} layers")
        if any(not isinstance(item, int) or item < 0 for item in values):
            raise self.meta.wrong(key, value, "not a count for each layer")
        return [int(item) for item in values]
