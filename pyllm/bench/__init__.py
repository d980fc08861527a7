"""Measurements that compare: both sides in one run, in turn."""
