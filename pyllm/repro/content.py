"""What a prompt with images is made of: pieces, as the content parts of OpenAI's chat API."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator, model_validator

from pyllm.repro.part import Part, near, refuse
from pyllm.server.client import IMAGE

COLOURS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 128, 0),
    "grey": (128, 128, 128),
    "red": (255, 0, 0),
    "white": (255, 255, 255),
    "yellow": (255, 255, 0),
}

Side = Annotated[int, Field(ge=1, le=2048)]


class Image(Part):
    """An image of ``width`` times ``height`` pixels: of one ``colour``, a name or ``#rrggbb``, or of random ones, drawn by ``seed``."""

    width: Side
    height: Side
    colour: str | None = None
    seed: Annotated[int, Field(ge=0)] | None = None

    @field_validator("colour")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in COLOURS and not re.fullmatch(r"#[0-9a-f]{6}", value):
            raise refuse(f"colour `{value}` is not known", near(value, [*COLOURS, "#rrggbb"], "colours"))
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Image:
        if (self.colour is None) == (self.seed is None):
            raise refuse("an image needs a colour or a seed, and only one of them", "colour: red, or seed: 0")
        return self

    def png(self) -> bytes:
        """The file, in PNG."""
        if self.colour is None:
            pixels = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        else:
            colour = COLOURS.get(self.colour) or tuple(bytes.fromhex(self.colour[1:]))
            pixels = np.full((self.height, self.width, 3), colour, np.uint8)
        # Eight bits of red, green and blue; each line begins with the filter that changes nothing.
        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        lines = b"".join(b"\0" + line.tobytes() for line in pixels)
        return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Piece(Part):
    """A piece of a prompt: ``text``, or an ``image``."""

    text: str | None = None
    image: Image | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Piece:
        if (self.text is None) == (self.image is None):
            raise refuse("a piece of content needs a text or an image, and only one of them", "write one piece for each, in their order")
        if self.text is not None and IMAGE in self.text:
            raise refuse("the text has the character U+FFFC, which stands for an image", "leave it out")
        return self


def joined(pieces: tuple[Piece, ...]) -> tuple[str, tuple[str, ...]]:
    """The text with ``IMAGE`` in the place of each image, and the images' files in base64."""
    text = "".join(IMAGE if piece.text is None else piece.text for piece in pieces)
    return text, tuple(base64.b64encode(piece.image.png()).decode() for piece in pieces if piece.image is not None)
