"""Slots: which sequence of the KV cache belongs to whom, and what it holds."""

from pyllm.slots.pool import SlotPool
from pyllm.slots.slot import Slot, common_prefix

__all__ = ["Slot", "SlotPool", "common_prefix"]
