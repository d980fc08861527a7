"""Slots: which sequence belongs to whom, what its memory holds, and how that is cut, copied, shifted and saved.

``slot`` is one, ``pool`` all of them; ``memory`` moves target and drafter together; ``prefix`` finds how much of a prompt is there already;
``marks`` are the places of checkpoints.
"""

from pyllm.slots.marks import next_mark
from pyllm.slots.memory import Before, Memory
from pyllm.slots.pool import SlotPool
from pyllm.slots.prefix import Reach, Source
from pyllm.slots.slot import Slot, SlotInfo, common_prefix

__all__ = ["Before", "Memory", "Reach", "Slot", "SlotInfo", "SlotPool", "Source", "common_prefix", "next_mark"]
