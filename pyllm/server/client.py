"""llama-server's HTTP API, as much of it as pyllm needs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import httpx

from pyllm.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Finish = Literal["stop", "length", "cancelled"]

#: Stands for an image in the text of a prompt: Unicode's character for an object that is not text.
IMAGE = "\N{OBJECT REPLACEMENT CHARACTER}"


class RefusedError(ServerError):
    """The server answered with an HTTP error.

    ``status`` is its code, ``kind`` the server's own word (``invalid_request_error`` …).
    """

    def __init__(self, status: int, kind: str, text: str) -> None:
        super().__init__(f"the server answered {status} {kind}: {text}", "" if status < 500 else "the server's log says more")
        self.status = status
        self.kind = kind

    @property
    def defect(self) -> bool:
        """Whether the server failed, rather than declined: it cannot do it (501) or has no room now (503) are answers."""
        return self.status >= 500 and self.kind not in {"not_supported_error", "unavailable_error"}


@dataclass(frozen=True)
class ServerCompletion:
    """A finished completion.

    ``tokens`` are all generated ones; ``timings`` is the server's own object, milliseconds in ``…_ms``.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    slot: int
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the slot and not computed again."""
        return int(self.timings.get("cache_n", 0))

    @property
    def drafted(self) -> int:
        """Tokens that the drafter proposed."""
        return int(self.timings.get("draft_n", 0))

    @property
    def accepted(self) -> int:
        """Drafted tokens that were kept."""
        return int(self.timings.get("draft_n_accepted", 0))


@dataclass(frozen=True)
class ServerChunk:
    """A piece of a streamed completion; the last one carries ``completion`` with everything before it."""

    text: str
    tokens: tuple[int, ...]
    completion: ServerCompletion | None = None


class ServerClient:
    """A connection to one server. A context manager; may be used from several threads.

    ``url`` is the server's root, ``timeout`` the seconds that one answer may take.

    Raises:
        ServerError: from every call, when the server cannot be reached, ends the connection or takes too long.
        RefusedError: from every call, when the server answers with an HTTP error.
    """

    def __init__(self, url: str, *, timeout: float = 120.0) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(timeout, connect=5.0),
            # llama-server closes a connection after a stream, which shows only when the next request on it is lost.
            limits=httpx.Limits(max_keepalive_connections=0),
            # The environment's proxies are not for servers of this machine.
            trust_env=False,
            # Loading certificates takes longer than a tiny model's answer.
            verify=url.startswith("https"),
        )

    def health(self) -> bool:
        """Whether the server is up and has loaded its model. Never raises."""
        try:
            return self._http.get("/health", timeout=2.0).status_code == httpx.codes.OK
        except (httpx.HTTPError, OSError):
            return False

    def completion(
        self,
        prompt: str | Sequence[int],
        *,
        n: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        slot: int | None = None,
        cache: bool = True,
        depth: int | None = None,
        images: Sequence[str] = (),
    ) -> ServerCompletion:
        """Continue ``prompt`` (text or tokens) by up to ``n`` tokens.

        ``cache`` False computes the whole prompt. ``depth`` bounds what is drafted at once for it; only pyllm-server heeds it. ``images`` are files in
        base64, one for each :data:`IMAGE` in the text.
        """
        body = _body(self._prompt(prompt, images), n=n, temperature=temperature, seed=seed, stop=stop, slot=slot, cache=cache, depth=depth)
        answer = self._json("POST", "/completion", body)
        return _completion(answer, str(answer.get("content", "")), tuple(answer.get("tokens", ())))

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        n: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        slot: int | None = None,
        cache: bool = True,
        depth: int | None = None,
        images: Sequence[str] = (),
    ) -> Iterator[ServerChunk]:
        """The same, piece by piece. Leaving the loop early makes the server cancel the request."""
        body = _body(self._prompt(prompt, images), n=n, temperature=temperature, seed=seed, stop=stop, slot=slot, cache=cache, depth=depth)
        text, tokens = "", ()
        try:
            with self._http.stream("POST", "/completion", json=body | {"stream": True}) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer.status_code, answer.text)
                for line in answer.iter_lines():
                    piece = _event(line)
                    if piece is None:
                        continue
                    text += str(piece.get("content", ""))
                    tokens = (*tokens, *piece.get("tokens", ()))
                    last = _completion(piece, text, tokens) if piece.get("stop") else None
                    yield ServerChunk(str(piece.get("content", "")), tuple(piece.get("tokens", ())), last)
        except (httpx.HTTPError, OSError) as failure:
            raise self._unreachable(failure) from failure

    def _prompt(self, prompt: str | Sequence[int], images: Sequence[str]) -> str | list[int] | dict[str, Any]:
        """As ``/completion`` takes it. What stands for an image there is a text that each server draws when it starts."""
        if not isinstance(prompt, str):
            return list(prompt)
        if not images:
            return prompt
        marker = str(self.properties().get("media_marker", ""))
        return {"prompt_string": prompt.replace(IMAGE, marker), "multimodal_data": list(images)}

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Tokens of ``text`` in the server's vocabulary."""
        answer = self._json("POST", "/tokenize", {"content": text, "add_special": add_special})
        return [int(token) for token in answer["tokens"]]

    def properties(self) -> dict[str, Any]:
        """The server's ``/props``: ``model_path``, ``total_slots``, ``build_info`` and more."""
        return self._json("GET", "/props")

    def save_slot(self, slot: int, name: str) -> dict[str, Any]:
        """Write a slot's state to file ``name`` in the server's ``--slot-save-path``."""
        return self._json("POST", f"/slots/{slot}?action=save", {"filename": name})

    def restore_slot(self, slot: int, name: str) -> dict[str, Any]:
        """Read a slot's state from file ``name`` in the server's ``--slot-save-path``."""
        return self._json("POST", f"/slots/{slot}?action=restore", {"filename": name})

    def metrics(self) -> dict[str, float]:
        """The server's counters (``--metrics``), without labels."""
        lines = self._send("GET", "/metrics", None).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._send(method, path, body)
        try:
            value = answer.json()
        except ValueError as failure:
            raise ServerError(
                f"the server at {self.url} answered {path} with something that is not JSON: {answer.text[:80]!r}",
                "is this a llama-server?",
            ) from failure
        if not isinstance(value, dict):
            raise ServerError(
                f"the server at {self.url} answered {path} with {type(value).__name__} instead of an object",
                "is this a llama-server?",
            )
        return value

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body)
        except (httpx.HTTPError, OSError) as failure:
            raise self._unreachable(failure) from failure
        if answer.is_error:
            raise _refusal(answer.status_code, answer.text)
        return answer

    def _unreachable(self, failure: Exception) -> ServerError:
        if isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout):
            return ServerError(f"no server answers at {self.url}", "start one, or check the address")
        if isinstance(failure, httpx.TimeoutException):
            return ServerError(f"the server at {self.url} gave no answer within {self.timeout:g} s", "it hangs, or needs more time")
        return ServerError(
            f"the server at {self.url} ended the connection without an answer",
            "it has probably died: its log says more",
        )

    def close(self) -> None:
        """Close the connection. Closing twice is silent."""
        self._http.close()

    def __enter__(self) -> ServerClient:  # noqa: PYI034 - typing has no Self before 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _body(
    prompt: str | list[int] | dict[str, Any],
    *,
    n: int,
    temperature: float,
    seed: int | None,
    stop: Sequence[str],
    slot: int | None,
    cache: bool,
    depth: int | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": prompt,
        "n_predict": n,
        "temperature": temperature,
        "stop": list(stop),
        "return_tokens": True,
        "cache_prompt": cache,
    }
    if seed is not None:
        body["seed"] = seed
    if slot is not None:
        body["id_slot"] = slot
    if depth is not None:
        body["speculative.n_max"] = depth
    return body


def _event(line: str) -> dict[str, Any] | None:
    """The object of one server-sent event, None for lines that carry none."""
    name, _, data = line.partition(": ")
    if name not in {"data", "error"} or data.strip() == "[DONE]":
        return None
    piece: dict[str, Any] = json.loads(data)
    if name == "error" or "error" in piece:
        fault = piece.get("error", piece)
        raise RefusedError(int(fault.get("code", 500)), str(fault.get("type", "")), str(fault.get("message", data)))
    return piece


def _completion(answer: dict[str, Any], text: str, tokens: tuple[int, ...]) -> ServerCompletion:
    return ServerCompletion(
        text=text,
        tokens=tokens,
        finish="length" if answer.get("stop_type") == "limit" else "stop",
        prompt_tokens=int(answer.get("tokens_evaluated", 0)),
        slot=int(answer.get("id_slot", -1)),
        timings=dict(answer.get("timings", {})),
    )


def _refusal(status: int, text: str) -> RefusedError:
    try:
        fault = json.loads(text)["error"]
        return RefusedError(status, str(fault.get("type", "")), str(fault.get("message", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return RefusedError(status, "", text[:200].strip() or "no text")
