"""Which binary runs."""

from __future__ import annotations

import pytest

from pyllm.errors import NotFoundError, ServerError
from pyllm.server import find_server, server_version
from pyllm.server.binary import ENVIRONMENT, installed_server


def _script(path, text="#!/bin/sh\n"):
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_an_explicit_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(_script(tmp_path / "named")))
    explicit = _script(tmp_path / "explicit")
    assert find_server(explicit) == explicit
    assert find_server() == tmp_path / "named"


def test_without_anything_it_is_the_installed_one(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert find_server() == installed_server()


def test_the_installed_one_is_of_this_package_and_its_library(monkeypatch):
    from pyllm import __version__  # noqa: PLC0415 - the native library is part of what is tested
    from pyllm._ffi import upstream_commit  # noqa: PLC0415 - the native library is part of what is tested

    monkeypatch.delenv(ENVIRONMENT, raising=False)
    version = server_version(find_server())
    assert version is not None
    assert (version.version, version.upstream) == (__version__, upstream_commit())


def test_a_missing_binary_names_the_path_and_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(NotFoundError, match="there is no server binary") as caught:
        find_server(tmp_path / "none")
    assert "llama-server" in caught.value.hint
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "none"))
    with pytest.raises(NotFoundError) as caught:
        find_server()
    assert ENVIRONMENT in caught.value.hint


def test_a_file_that_may_not_be_executed(tmp_path):
    (tmp_path / "plain").write_text("x")
    with pytest.raises(NotFoundError, match="may not be executed") as caught:
        find_server(tmp_path / "plain")
    assert "chmod +x" in caught.value.hint


def test_versions(tmp_path):
    other = _script(tmp_path / "other", "#!/bin/sh\necho version: 1\n")
    assert server_version(other) is None
    ours = _script(tmp_path / "ours", "#!/bin/sh\necho 'pyllm-server 1.2 (llama.cpp abc)'\n")
    version = server_version(ours)
    assert version is not None
    assert (version.version, version.upstream) == ("1.2", "abc")
    with pytest.raises(ServerError, match="does not run"):
        server_version(_script(tmp_path / "broken", "\x7fELF nonsense"))
