"""PyTorch's scaled dot product attention and FlashInfer, over copies of the same Q, K and V; what is not installed says so."""

from __future__ import annotations

import importlib
import itertools
import math
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from pyllm.errors import OutOfMemoryError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pyllm._ffi import Attention
    from pyllm.routes.key import Node

#: Head dims that FlashInfer's fa2 is compiled for; others make it read outside of its tiles.
_HEADS = (64, 128, 256)
#: Tokens of a page of FlashInfer's cache, and bytes of its workspace.
_PAGE = 64
_WORKSPACE = 512 * 2**20


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as failure:  # noqa: BLE001 - FlashInfer looks for compilers and binaries of its own while it is imported
        raise UnsupportedError(f"{name} cannot be imported: {_first_line(failure)}", f"install {name} to compare with it") from None


def _first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [type(failure).__name__])[0]


class _TorchSide(ABC):
    """Q, K and V of every node as torch tensors, ``[streams, heads, rows, d]``; on a GPU all passes are one captured graph."""

    name = ""
    torch: Any = None

    def __init__(self, device: str) -> None:
        self.device = device
        self.sets: list[tuple[Any, ...]] = []
        self.output: Any = None

    def prepare(self, attention: Attention, node: Node) -> str:
        """See :class:`pyllm.bench.attention.side.Side`."""
        self.torch = _module("torch")
        self.check(node)
        if self.device != "cpu" and not self.torch.cuda.is_available():
            raise UnsupportedError("this torch has no GPU", "install one for the GPU's toolkit")
        self.node = node
        self.heads = {"q": (node.n_head, node.n_q, node.d_k), "k": (node.n_head_kv, node.n_kv, node.d_k), "v": (node.n_head_kv, node.n_kv, node.d_v)}
        dtype = self.torch.float32 if self.device == "cpu" else self.torch.float16
        if self.device != "cpu":
            self.torch.cuda.set_device(self.device)
        try:
            # The first node's values, so that results can be compared; the others only have to lie elsewhere.
            first = tuple(self.tensor(attention.input(name), name, dtype) for name in "qkv")
            self.sets = [first, *(tuple(one.clone() for one in first) for _ in range(attention.nodes - 1))]
            self.ready()
            self.replay: Callable[[], None] = self.captured() if self.device != "cpu" else self.all_nodes
        except Exception as failure:  # noqa: BLE001 - what another library cannot is told, and the others go on
            self.close()
            kind = OutOfMemoryError if isinstance(failure, self.torch.OutOfMemoryError) else UnsupportedError
            raise kind(f"{self.name}: {type(failure).__name__}: {_first_line(failure)}", "leave it out with --against, or measure a shorter cache") from None
        return self.words()

    def tensor(self, values: NDArray[np.float32], name: str, dtype: Any) -> Any:
        """As ``[streams, heads, rows, d]`` on the device."""
        return self.torch.from_numpy(values.reshape(self.node.streams, *self.heads[name])).to(self.device, dtype)

    def check(self, node: Node) -> None:
        """Raise UnsupportedError for a node that the side does not have."""
        for what, there in (("ALiBi", node.alibi), ("a softcap", node.softcap), ("sinks", node.sinks), ("a limit of rows", node.n_kv_max > 0)):
            if there:
                raise UnsupportedError(f"{self.name} is not asked for {what}", "measure without")
        if {node.type_k, node.type_v} - {"f16"}:
            raise UnsupportedError(f"{self.name} has no {node.type_k}/{node.type_v} cache", "measure f16")

    @abstractmethod
    def ready(self) -> None:
        """What has to be done once, with the tensors in place."""

    @abstractmethod
    def one(self, number: int) -> Any:
        """Compute node ``number``."""

    def words(self) -> str:
        """What runs the node."""
        return self.name

    def all_nodes(self) -> None:
        """One pass."""
        for number in range(len(self.sets)):
            output = self.one(number)
            if number == 0:
                self.output = output

    def captured(self) -> Callable[[], None]:
        """One pass as a graph, so that the time is the device's and not that of Python's calls."""
        cuda = self.torch.cuda
        stream = cuda.Stream()
        # Copies and plans were queued on the stream of before.
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(3):
                self.all_nodes()
        stream.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            self.all_nodes()
        return graph.replay  # type: ignore[no-any-return]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def time(self, repeats: int) -> float:
        """See :class:`pyllm.bench.attention.side.Side`."""
        self.replay()
        self.synchronize()
        begin = time.perf_counter()
        for _ in range(repeats):
            self.replay()
        self.synchronize()
        return (time.perf_counter() - begin) / repeats / len(self.sets) * 1e6

    def result(self) -> NDArray[np.float32]:
        """See :class:`pyllm.bench.attention.side.Side`."""
        found: NDArray[np.float32] = self.rows(self.output).float().cpu().numpy().ravel()
        return found

    @abstractmethod
    def rows(self, output: Any) -> Any:
        """A result as ``[streams, n_q, n_head, d_v]``."""

    def close(self) -> None:
        """Give the tensors back."""
        self.sets, self.output, self.replay = [], None, self.all_nodes
        self.free()
        if self.torch is not None and self.device != "cpu":
            self.torch.cuda.empty_cache()

    @abstractmethod
    def free(self) -> None:
        """Let go of what :meth:`ready` made."""


class Sdpa(_TorchSide):
    """``torch.nn.functional.scaled_dot_product_attention``, causal over the last rows."""

    name = "sdpa"

    mask: Any = None

    def ready(self) -> None:
        """Query heads as rows of their KV head, which PyTorch's fast kernels take with a mask; one row sees everything and needs none."""
        node, torch = self.node, self.torch
        gqa = node.n_head // node.n_head_kv
        self.sets = [(q.reshape(node.streams, node.n_head_kv, gqa * node.n_q, node.d_k), k, v) for q, k, v in self.sets]
        if node.mask != "none" and node.n_q > 1:
            columns = torch.arange(node.n_kv, device=self.device)
            last = torch.arange(node.n_kv - node.n_q, node.n_kv, device=self.device).clamp(min=0)
            self.mask = (columns[None, :] <= last[:, None]).repeat(gqa, 1)

    def one(self, number: int) -> Any:
        """See :class:`_TorchSide`."""
        q, k, v = self.sets[number]
        return self.torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

    def rows(self, output: Any) -> Any:
        """From ``[streams, KV heads, query heads of one * rows, d]``."""
        return output.reshape(self.node.streams, self.node.n_head, self.node.n_q, self.node.d_v).permute(0, 2, 1, 3)

    def free(self) -> None:
        """See :class:`_TorchSide`."""
        self.mask = None

    def words(self) -> str:
        """The version."""
        return f"torch {self.torch.__version__}"


class FlashInfer(_TorchSide):
    """FlashInfer's paged attention, backend fa2, causal over the last rows; pages of 64 tokens."""

    name = "flashinfer"

    def check(self, node: Node) -> None:
        """Only square head dims, and only on a GPU."""
        super().check(node)
        if self.device == "cpu":
            raise UnsupportedError("FlashInfer needs a GPU", "name one")
        if node.d_k != node.d_v or node.d_k not in _HEADS or node.n_kv % _PAGE or node.mask == "none" or node.n_q > node.n_kv:
            heads = ", ".join(map(str, _HEADS))
            raise UnsupportedError(f"FlashInfer is asked for head dims {heads}, whole pages of {_PAGE} and a causal mask", "measure such a shape")
        self.flashinfer = _module("flashinfer")

    def ready(self) -> None:
        """Pages in place of rows, and the plan."""
        node, torch = self.node, self.torch
        pages = node.n_kv // _PAGE
        self.sets = [
            (
                q.permute(0, 2, 1, 3).reshape(-1, node.n_head, node.d_k).contiguous(),
                *(one.permute(0, 2, 1, 3).reshape(-1, _PAGE, node.n_head_kv, node.d_k).contiguous() for one in (k, v)),
            )
            for q, k, v in self.sets
        ]
        counts = torch.arange(node.streams + 1, dtype=torch.int32, device=self.device)
        self.wrapper = self.flashinfer.BatchPrefillWithPagedKVCacheWrapper(torch.empty(_WORKSPACE, dtype=torch.uint8, device=self.device), "NHD", backend="fa2")
        self.wrapper.plan(
            counts * node.n_q,
            counts * pages,
            torch.arange(node.streams * pages, dtype=torch.int32, device=self.device),
            torch.full((node.streams,), _PAGE, dtype=torch.int32, device=self.device),
            node.n_head,
            node.n_head_kv,
            node.d_k,
            _PAGE,
            causal=True,
            sm_scale=1 / math.sqrt(node.d_k),
            q_data_type=torch.float16,
            kv_data_type=torch.float16,
        )

    def one(self, number: int) -> Any:
        """See :class:`_TorchSide`."""
        q, *kv = self.sets[number]
        return self.wrapper.run(q, tuple(kv))

    def rows(self, output: Any) -> Any:
        """It has the order already."""
        return output

    wrapper: Any = None

    def free(self) -> None:
        """See :class:`_TorchSide`."""
        self.wrapper = None

    def words(self) -> str:
        """The version and the backend."""
        return f"flashinfer {self.flashinfer.__version__} fa2"


def torch_device(name: str) -> str:
    """Torch's name for a device of ggml's: CUDA1 is ``cuda:1``.

    Raises:
        UnsupportedError: torch has no such device.
    """
    kind = "".join(itertools.takewhile(str.isalpha, name))
    if kind == "CPU":
        return "cpu"
    if kind in {"CUDA", "ROCm"}:
        return f"cuda:{name[len(kind) :]}"
    raise UnsupportedError(f"torch has no device for {name}", "compare on a CPU, or on a CUDA or HIP GPU")
