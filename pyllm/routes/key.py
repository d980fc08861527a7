"""One attention node and the device it runs on: everything that a route may depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pyllm.errors import ConfigError
from pyllm.routes.axes import AXES, FLOAT_TYPES, KV_TYPES, MAX_HEAD_DIM

if TYPE_CHECKING:
    from pyllm.routes.devices import Device

#: Types that upstream converts to f16 only when they are densely allocated; convert.cu, ggml_get_to_fp16_nc_cuda.
DENSE_ONLY = ("iq4_nl",)

_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Node:
    """One ``FLASH_ATTN_EXT`` node. Q is ``[d_k, n_q, n_head, streams]``, K ``[d_k, n_kv, n_head_kv, streams]``, V ``[d_v, n_kv, n_head_kv, streams]``.

    ``mask`` is ``none``, ``stream`` (one per stream), ``repeat`` (one for several streams) or ``head`` (one per head); ``align`` and
    ``mask_align`` are the largest powers of two up to 16 that divide every stride and offset of the unquantised tensors, in bytes.
    ``wide`` is 1 where the rows of K, V or mask span over 2 GiB of a head, 2 where heads or the rows of Q do.
    ``n_kv_max`` is the most KV rows that one query may see where the model says so, else 0.

    Raises:
        ConfigError: numbers that contradict each other.
    """

    d_k: int
    d_v: int
    n_head: int
    n_head_kv: int
    n_q: int
    n_kv: int
    streams: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    mask: str = "stream"
    alibi: bool = False
    softcap: bool = False
    sinks: bool = False
    align: int = 16
    mask_align: int = 16
    view: bool = False
    dense: bool = True
    rows: bool = True
    wide: int = 0
    n_kv_max: int = 0

    def __post_init__(self) -> None:
        for name in ("d_k", "d_v", "n_head", "n_head_kv", "n_q", "n_kv", "streams"):
            value = getattr(self, name)
            if not 0 < value <= _LARGEST:
                raise ConfigError(f"{name} is {value}: an attention node has at least 1", f"give {name} between 1 and {_LARGEST}")
        for name in ("d_k", "d_v"):
            if getattr(self, name) > MAX_HEAD_DIM:
                raise ConfigError(f"{name} is {getattr(self, name)}: no route takes head dims over {MAX_HEAD_DIM}", "split the heads")
        if self.n_head % self.n_head_kv:
            raise ConfigError(
                f"{self.n_head} query heads do not divide over {self.n_head_kv} KV heads",
                f"give a multiple of {self.n_head_kv} query heads, such as {max(1, self.n_head // self.n_head_kv) * self.n_head_kv}",
            )
        for name in ("type_k", "type_v"):
            if getattr(self, name) not in KV_TYPES:
                raise ConfigError(f"{name} `{getattr(self, name)}` is no KV cache type", f"one of {', '.join(KV_TYPES)}")
        if self.mask not in _MASKS:
            raise ConfigError(f"mask `{self.mask}` is not known", f"one of {', '.join(_MASKS)}")
        if self.alibi and self.mask == "none":
            raise ConfigError("ALiBi without a mask", "ALiBi scales the mask: give a mask, or no ALiBi")
        if self.view and (self.type_k != self.type_v or self.d_v > self.d_k):
            raise ConfigError(
                f"V ({self.type_v}, {self.d_v}) cannot be a view of K ({self.type_k}, {self.d_k})", "a view has K's type and at most its head dim"
            )

    def __str__(self) -> str:
        shape = f"{self.d_k}/{self.d_v} heads {self.n_head}/{self.n_head_kv} n_q {self.n_q} n_kv {self.n_kv}"
        parts = [shape, f"{self.type_k}/{self.type_v}"]
        if self.streams > 1:
            parts.append(f"{self.streams} streams")
        parts += [name for name in ("alibi", "softcap", "sinks", "view") if getattr(self, name)]
        if self.mask != "stream":
            parts.append(f"mask {self.mask}")
        if self.align < _ALIGNED:
            parts.append(f"aligned to {self.align}")
        return " ".join(parts)

    def codes(self, device: Device) -> tuple[int, ...]:
        """The axes' values on ``device``, encoded, in the order of ``AXES``."""
        values = {
            "vendor": device.vendor,
            "arch": device.arch,
            "matrix": device.matrix,
            "fast_fp16": device.fast_fp16,
            "smem": device.smem,
            "head": f"{self.d_k}/{self.d_v}",
            "gqa": self.n_head // self.n_head_kv,
            "kv": f"{self.type_k}/{self.type_v}",
            "quantised": not {self.type_k, self.type_v} <= set(FLOAT_TYPES),
            "convertible": self.dense or not {self.type_k, self.type_v} & set(DENSE_ONLY),
            "sparsity": self.n_kv // self.n_kv_max if self.n_kv_max else 0,
        }
        return tuple(axis.encode(values[axis.name] if axis.name in values else getattr(self, axis.name)) for axis in AXES)


_MASKS = next(axis.words for axis in AXES if axis.name == "mask")
_ALIGNED = 16

NODE_FIELDS = tuple(field.name for field in fields(Node))


@dataclass(frozen=True, slots=True)
class Key:
    """A node on a device."""

    device: Device
    node: Node

    @property
    def codes(self) -> tuple[int, ...]:
        """See ``Node.codes``."""
        return self.node.codes(self.device)

    def __str__(self) -> str:
        return f"{self.device.name}: {self.node}"
