"""``pyllm bench``: mounted from :mod:`pyllm.bench`."""

from pyllm.bench.command import app

__all__ = ["app"]
