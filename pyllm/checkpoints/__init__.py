"""Checkpoints: what a slot has computed, kept in memory or in a file.

``checkpoint`` is one, ``store`` those that lost their slot.
"""

from pyllm.checkpoints.checkpoint import Checkpoint, State
from pyllm.checkpoints.store import CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore", "State"]
