"""A stand-in for llama-server: the next token is the last one plus one.

Flags: ``--start`` exit | hang | slow, ``--answer`` die | 500 | 400 | hang | wrong | short, ``--answer-after N`` good
answers first, ``--on-stop`` crash. A drafter flag (``--spec-type``) switches ``--answer`` on; without one it always
answers well, as an oracle has to.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int)
parser.add_argument("-m", default="")
parser.add_argument("--start", default="")
parser.add_argument("--answer", default="")
parser.add_argument("--answer-after", type=int, default=0)
parser.add_argument("--on-stop", default="")
parser.add_argument("--spec-type", default="")
parser.add_argument("--slot-save-path", default="")
parser.add_argument("--list-devices", action="store_true")
options, _ = parser.parse_known_args()
served = 0


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status, kind, message):
        self.reply(status, {"error": {"code": status, "type": kind, "message": message}})

    def do_GET(self):
        if self.path == "/health":
            loading = options.start == "slow" and time.monotonic() - begin < 0.5
            self.reply(503 if loading else 200, {"status": "loading" if loading else "ok"})
        elif self.path == "/props":
            self.reply(200, {"model_path": options.m, "media_marker": "<media>"})
        elif self.path == "/metrics":
            data = b"# HELP a\nllamacpp:prompt_tokens_total 7\nllamacpp:n_busy_slots_per_decode 1.5\n"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)
        else:
            self.refuse(404, "not_found_error", "File Not Found")

    def do_POST(self):
        global served  # noqa: PLW0603 - a count
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.reply(200, {"tokens": [ord(c) for c in body["content"]]})
            return
        if self.path.startswith("/slots/"):
            self.refuse(400, "invalid_request_error", "no such slot file")
            return
        served += 1
        answer = options.answer if options.spec_type and served > options.answer_after else ""
        if answer == "die":
            print("GGML_ASSERT(false) failed", flush=True)
            os.kill(os.getpid(), signal.SIGABRT)
            time.sleep(60)  # another thread may be the one to take the signal
        if answer == "hang":
            time.sleep(60)
        if answer == "500":
            self.refuse(500, "server_error", "internal trouble")
            return
        prompt = body["prompt"]
        if isinstance(prompt, dict):
            # An image is one token, which its size tells.
            places = [f"{chr(len(data))}" for data in prompt["multimodal_data"]]
            first, *texts = prompt["prompt_string"].split("<media>")
            prompt = first + "".join(place + text for place, text in zip(places, texts, strict=True))
        if isinstance(prompt, str):
            prompt = [ord(c) for c in prompt]
        if answer == "400" or len(prompt) > 100:
            self.refuse(400, "exceed_context_size_error", "the request exceeds the available context size")
            return
        tokens = [prompt[-1] + 1 + i for i in range(body["n_predict"])]
        if answer == "wrong":
            tokens[1] += 50
        if answer == "short":
            tokens.pop()
        last = {
            "content": "x" * len(tokens),
            "tokens": tokens,
            "stop": True,
            "stop_type": "limit",
            "id_slot": max(body.get("id_slot", 0), 0),
            "tokens_evaluated": len(prompt),
            "timings": {"cache_n": 0, "draft_n": 4, "draft_n_accepted": 3} if options.spec_type else {},
        }
        if not body.get("stream"):
            self.reply(200, last)
            return
        self.send_response(200)
        self.end_headers()
        pieces = [{"content": "x", "tokens": [token], "stop": False} for token in tokens]
        for piece in [*pieces, last | {"content": "", "tokens": []}]:
            self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
            self.wfile.flush()


if options.list_devices:
    print("Available devices:\n  (none)")
    sys.exit(0)
if options.start == "exit":
    print("loading\nerror: no such model")
    sys.exit(3)
if options.start == "hang":
    time.sleep(60)


def stop(number, frame):
    print(f"got {signal.Signals(number).name}", flush=True)
    if options.on_stop == "crash":
        os.kill(os.getpid(), signal.SIGABRT)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
begin = time.monotonic()
print("listening", flush=True)
ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
