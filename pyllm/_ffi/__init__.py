"""The native core from Python: one class per handle of ``native/include/pyllm.h``.

Only :mod:`pyllm._ffi.door` imports the compiled module. Every failing call raises the exception of its status
(:mod:`pyllm.errors`); every handle is a context manager, raises ``ClosedError`` when used after ``close()``, and may be closed twice.
"""

from pyllm._ffi.attention import LANES, Attention, Rates, device_rates
from pyllm._ffi.batch import Batch
from pyllm._ffi.blob import Blob
from pyllm._ffi.checkpoint import CheckpointFile, Section, model_fingerprint, write_checkpoint_file
from pyllm._ffi.context import Context, ContextInfo
from pyllm._ffi.crash import disable_crash_report, enable_crash_report
from pyllm._ffi.depth import Cut, DepthControl, DepthCosts, DepthReason, DepthSlot
from pyllm._ffi.device import Device, devices
from pyllm._ffi.door import build_info, default_threads, kernels, kv_type, kv_type_name, set_log_level, upstream_commit
from pyllm._ffi.drafter import Draft, Drafter, DrafterInfo, DrafterStats, DraftRequest, LinkInfo
from pyllm._ffi.grammar import check_grammar, grammar_from_json_schema
from pyllm._ffi.logprobs import Logprobs, logprobs
from pyllm._ffi.model import Model, ModelInfo, VocabInfo
from pyllm._ffi.route import (
    RouteCount,
    allow_cpu_attention,
    benchmark_routes,
    block_route,
    check_route_table,
    decide_route,
    default_route_table,
    device_axes,
    failing_conditions,
    force_route,
    force_route_on,
    route_counts,
    set_route_table,
)
from pyllm._ffi.sampler import Sampler
from pyllm._ffi.trace import AttentionNode

__all__ = [
    "LANES",
    "Attention",
    "AttentionNode",
    "Batch",
    "Blob",
    "CheckpointFile",
    "Context",
    "ContextInfo",
    "Cut",
    "DepthControl",
    "DepthCosts",
    "DepthReason",
    "DepthSlot",
    "Device",
    "Draft",
    "DraftRequest",
    "Drafter",
    "DrafterInfo",
    "DrafterStats",
    "LinkInfo",
    "Logprobs",
    "Model",
    "ModelInfo",
    "Rates",
    "RouteCount",
    "Sampler",
    "Section",
    "VocabInfo",
    "allow_cpu_attention",
    "benchmark_routes",
    "block_route",
    "build_info",
    "check_grammar",
    "check_route_table",
    "decide_route",
    "default_route_table",
    "default_threads",
    "device_axes",
    "device_rates",
    "devices",
    "disable_crash_report",
    "enable_crash_report",
    "failing_conditions",
    "force_route",
    "force_route_on",
    "grammar_from_json_schema",
    "kernels",
    "kv_type",
    "kv_type_name",
    "logprobs",
    "model_fingerprint",
    "route_counts",
    "set_log_level",
    "set_route_table",
    "upstream_commit",
    "write_checkpoint_file",
]
