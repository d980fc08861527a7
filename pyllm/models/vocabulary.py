"""The tokenizer that every tiny model carries.

It is a SentencePiece vocabulary (``tokenizer.ggml.model = llama``) of single characters with byte fallback, so that
any text can be tokenized, one character is one token, and a target and its drafter always agree. The layout is the
same in every recipe:

===========  =================================================
ids          tokens
===========  =================================================
0 … 15       control tokens, see :data:`CONTROL`
16 … 271     one token per byte
272 … 366    the 95 printable pieces: the space and ``!`` … ``~``
367 … 511    unused padding, as real vocabularies have
===========  =================================================

Only printable pieces are ever generated (:mod:`pyllm.models.families`): the output of a tiny model is plain ASCII and
never ends early.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTROL = (
    "<unk>",
    "<s>",
    "</s>",
    "<mask>",
    "<pad>",
    "<stale>",
    "<user>",
    "<assistant>",
    "<system>",
    "<tool>",
    *(f"<reserved{i}>" for i in range(6)),
)
"""Names of the control tokens, in the order of their ids."""

UNKNOWN_ID = 0
BOS_ID = 1
EOS_ID = 2
MASK_ID = 3
"""What a block drafter puts at the positions it has to fill."""
PADDING_ID = 4
STALE_ID = 5
"""What a successor drafter proposes when the hidden row it was given does not belong to the token it was given."""

FIRST_BYTE_ID = len(CONTROL)
FIRST_PIECE_ID = FIRST_BYTE_ID + 256
PIECES = ("\u2581", *(chr(c) for c in range(ord("!"), ord("~") + 1)))
"""The printable pieces; SentencePiece writes the space as U+2581."""
N_PIECES = len(PIECES)
N_VOCAB = 512

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6  # llama_token_type


@dataclass(frozen=True)
class Vocabulary:
    """Tokens, scores and types, each of length ``n_vocab``, in the form the GGUF keys ``tokenizer.ggml.*`` take."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


def standard(n_vocab: int = N_VOCAB, *, reverse: bool = False) -> Vocabulary:
    """Return the common vocabulary; with ``reverse`` a foreign one, its printable pieces in the opposite order."""
    pieces = PIECES[::-1] if reverse else PIECES
    used = FIRST_PIECE_ID + N_PIECES
    tokens = (
        *CONTROL,
        *(f"<0x{b:02X}>" for b in range(256)),
        *pieces,
        *(f"<unused{i}>" for i in range(n_vocab - used)),
    )
    types = (
        _UNKNOWN,
        *(_CONTROL for _ in CONTROL[1:]),
        *(_BYTE for _ in range(256)),
        *(_NORMAL for _ in pieces),
        *(_UNUSED for _ in range(n_vocab - used)),
    )
    return Vocabulary(tokens, tuple(0.0 for _ in tokens), types)


def piece_id(character: str) -> int:
    """Return the token of one printable ASCII character.

    Raises:
        ValueError: for anything that is not one of :data:`PIECES` (a plain space is accepted).

    """
    return FIRST_PIECE_ID + PIECES.index("\u2581" if character == " " else character)
