"""What an architecture needs in its file, before any number is chosen.

A blueprint lists the metadata and the tensors of a GGUF file. Each tensor has a *role*, which is all that a weight
family (:mod:`pyllm.models.families`) has to know in order to fill it: an architecture never draws a number, a family
never names an architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyllm.errors import ConfigError

Value: TypeAlias = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]
Array: TypeAlias = npt.NDArray[np.float32]


class Role(Enum):
    """What a tensor does. "Stream" is the residual stream, "normed" its RMS-normalised form."""

    EMBED = "token id -> stream"
    HEAD = "normed -> logits"
    NORM = "weight of a norm in front of a sub-layer"
    HEAD_SCALE = "weight of the norm of each query or key head"
    POST_NORM = "weight of a norm behind a sub-layer: scales what the sub-layer adds to the stream"
    HEAD_NORM = "weight of the norm in front of the head"
    QUERY = "normed -> queries"
    KEY = "normed -> keys"
    VALUE = "normed -> values"
    ATTN_OUT = "attention output -> stream"
    GATE = "normed -> FFN gate"
    UP = "normed -> FFN"
    DOWN = "FFN -> stream"
    EXPERT_UP = "normed -> each routed expert"
    EXPERT_DOWN = "each routed expert -> stream"
    IN = "normed -> anything else: recurrent inputs, gates, routers"
    OUT = "anything else -> stream"
    FUSE = "[token embedding, hidden row] -> stream of a drafter"
    HAND_BACK = "normed of a drafter -> hidden row of its target"
    FEATURES = "concatenated layer inputs of the target -> stream of a drafter"
    SELECT = "normed -> weight of each way in which one token follows another"
    BEFORE = "token id in front -> those ways"
    AFTER = "token id behind -> those ways"
    FIXED = "values given by the architecture"


class Part(Enum):
    """Which computation a tensor belongs to."""

    TARGET = "target"
    NEXTN = "nextn"  # a block inside the target's file that drafts from the target's hidden row
    ASSISTANT = "assistant"  # a file of its own that drafts from the target's hidden row and KV cache
    DFLASH = "dflash"  # a file of its own that fills a block of mask positions in one pass
    EAGLE3 = "eagle3"  # a file of its own that drafts token by token from layer inputs of the target
    DRAFT = "draft"  # a model of its own that drafts from tokens alone


@dataclass(frozen=True)
class Heads:
    """How a graph uses the rows of a query or key projection.

    Attributes:
        count: heads in the projection.
        dim: dimensions per head.
        n_rot: rotated dimensions per head, 0 without RoPE.
        base: RoPE frequency base.
        scale: what the graph multiplies scores with.
        interleaved: whether dimensions 2i and 2i+1 rotate together (else i and i + n_rot/2).
        still: pairs from this one on do not rotate (proportional RoPE); None for none.
        normed: whether queries and keys are RMS-normalised per head.
        gated: whether each head's rows are followed by as many rows of an output gate.
        content: share of a key's squared length that carries content, in dimensions that no query looks at; for
            layers whose keys serve as values.
        reach: farthest useful offset in tokens, below the sliding window where there is one.

    """

    count: int
    dim: int
    n_rot: int
    base: float
    scale: float
    interleaved: bool = False
    still: int | None = None
    normed: bool = False
    gated: bool = False
    content: float = 0.0
    reach: int = 40


@dataclass(frozen=True)
class Tensor:
    """One tensor to be filled.

    Attributes:
        name: its name in the file.
        shape: in numpy order, slowest axis first: a matrix is ``(n_out, n_in)``, GGUF's ``{n_in, n_out}``.
        role: what it does.
        gain: standard deviation of its output for an input of unit standard deviation; for norms the weight itself.
        layer: block index, -1 outside of blocks.
        part: the computation it belongs to.
        fixed: the values, for :attr:`Role.FIXED`.
        heads: for queries, keys and the norms of their heads.
        single: always written in F32, for weights that ggml's kernels want so.

    """

    name: str
    shape: tuple[int, ...]
    role: Role
    gain: float = 1.0
    layer: int = -1
    part: Part = Part.TARGET
    fixed: Array | None = None
    heads: Heads | None = None
    single: bool = False


@dataclass
class Blueprint:
    """A whole file.

    Attributes:
        architecture: GGUF architecture name.
        metadata: keys without the architecture prefix; keys that start with a dot are written as they are, without
            it.
        tensors: in the order of the file.
        n_embd: width of the stream.
        n_embd_target: width of the target's stream; equals ``n_embd`` except for an assistant.
        block_size: positions in a block drafter's block, 0 for every other model.
        n_taps: layer inputs of the target that a block drafter reads, 0 for every other model.
        ballast: the graph does not normalise keys, so that their length has to be kept the same for every row by a
            constant that dwarfs everything else in the stream.
        reverse_vocabulary: printable pieces in the opposite order, a vocabulary that fits no other recipe.
        n_vocab: tokens.
        dense: of a real model's widths: what does not matter is noise made once and tiled.

    """

    architecture: str
    metadata: dict[str, Value]
    tensors: list[Tensor] = field(default_factory=list)
    n_embd: int = 0
    n_embd_target: int = 0
    block_size: int = 0
    n_taps: int = 0
    ballast: bool = False
    reverse_vocabulary: bool = False
    n_vocab: int = 512
    dense: bool = False

    def pad(self, n_vocab: int) -> None:
        """Give the vocabulary ``n_vocab`` tokens, the new ones unused.

        Raises:
            ConfigError: fewer than there are.

        """
        if n_vocab < self.n_vocab:
            raise ConfigError(f"n_vocab is {n_vocab}, but the vocabulary has {self.n_vocab} tokens", f"ask for {self.n_vocab} or more")
        for i, tensor in enumerate(self.tensors):
            if tensor.role in {Role.EMBED, Role.HEAD, Role.BEFORE, Role.AFTER} or tensor.name == "per_layer_token_embd.weight":
                self.tensors[i] = replace(tensor, shape=(n_vocab, *tensor.shape[1:]))
        self.metadata["vocab_size"] = n_vocab
        self.n_vocab = n_vocab
