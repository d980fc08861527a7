"""Replaying reported failures: a YAML file each, on three levels.

``document`` reads YAML and keeps line numbers; ``scenario`` and ``step`` are the format; ``collection`` finds the
files. ``engines`` are the selectors of reported engines, ``nodes`` the attention nodes of a scenario, and ``plan`` what
becomes of them there and here; ``shapes`` finds tensors that contradict each other. ``play`` walks the steps over a
``subject`` (an engine in a child process, or a server), ``oracle`` decodes every greedy prompt again, alone and without
speculation, ``runner`` turns that into a verdict per level, ``report`` prints them.
"""

from pyllm.repro.collection import find_scenarios
from pyllm.repro.runner import Runner
from pyllm.repro.scenario import Level, Scenario, load
from pyllm.repro.verdict import LEVELS, Failure, Verdict

__all__ = ["LEVELS", "Failure", "Level", "Runner", "Scenario", "Verdict", "find_scenarios", "load"]
