"""Attention routes: what runs each attention node on each device, why, and the proof that something always can.

``table.py`` is the table, ``executors.py`` and ``kernels.py`` what the kernels accept, ``check.py`` the proof, ``decision.py`` a decision with its
reasons, ``plan.py`` the decisions of a model before it is loaded. ``ROUTES.md`` is made from them.
"""
