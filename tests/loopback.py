"""An OpenAI-compatible server on loopback whose replies and faults are planted."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers as `say(prompt, given)` does, by default with the prompt in capitals; `faults` are statuses to give
    first, after `die_after` replies it hangs up on everybody; parameters that it `refuses` get status 400."""

    def __init__(self, faults=(), die_after=None, body=None, delay=0.0, listed=(), say=None, refuses=()):
        self.faults, self.die_after, self.body, self.delay, self.listed = list(faults), die_after, body, delay, listed
        self.refuses, self.given = tuple(refuses), []
        self.say = say or (lambda prompt, given: f"{prompt.upper()} {given.get('seed', '')}".strip())
        self.seen, self.keys, self.at_once, self.most_at_once, self.lock = [], set(), 0, 0, threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def send(self, status, content, **headers):
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send(200, {"object": "list", "data": [{"id": "m", "object": "model", **dict(self.server.listed)}]})

    def do_POST(self):
        server, given = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.keys.add(self.headers["Authorization"])
            fault = server.faults.pop(0) if server.faults else None
            if fault is None and server.die_after is not None and len(server.seen) >= server.die_after:
                fault = "gone"
            refused = next((name for name in server.refuses if name in given), None)
            if fault is None and refused is None:
                server.given.append(given)
                server.seen.append((given["messages"][-1]["content"], time.monotonic()))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        time.sleep(server.delay)
        with server.lock:
            server.at_once -= 1
        if fault == "gone":
            self.connection.close()
        elif refused and not fault:
            said = {"message": f"Unsupported parameter: '{refused}'", "param": refused, "code": "unsupported_parameter"}
            self.send(400, {"error": said})
        elif fault:
            said = {"error": {"message": f"no, {self.headers['Authorization']} asked too much"}}
            self.send(fault, said, retry_after_ms="1")
        else:
            self.send(200, server.body or completion(server.say(given["messages"][-1]["content"], given)))


def completion(text, finish="stop", **message):
    message = {"role": "assistant", "content": text, **message}
    return (
        {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        | {"choices": [{"index": 0, "finish_reason": finish, "message": message}]}
        | {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}
    )
