"""A server small enough to see through, with the faults a trial must survive. Arguments: PORT
MODE."""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

PORT, MODE = int(sys.argv[1]), sys.argv[2]
TOKENS = [7, 8, 9] if MODE != "wrong" else [1, 2, 3]


def span(name, start, end):
    path = os.environ.get("LABKIT_TIMELINE")
    if path:
        with open(path, "a") as out:
            out.write(
                json.dumps(
                    {"name": name, "start_s": start, "end_s": end, "source": "server", "detail": {}}
                )
                + "\n"
            )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Handler.asked += 1
        if MODE == "busy" and Handler.asked < 4:
            self.send_error(503)
            return
        if MODE == "reset" and Handler.asked < 3:
            self.connection.close()
            return
        if MODE == "refuse":
            self.send_error(422)
            return
        if MODE == "hang":
            time.sleep(600)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for token in TOKENS:
            event = (
                b"data: "
                + json.dumps({"choices": [{"text": "x", "token_ids": [token]}]}).encode()
                + b"\n\n"
            )
            # Two HTTP chunks an event, cut in the middle of the JSON: framing is not the client's
            # excuse.
            for piece in (event[:20], event[20:]):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def log_message(self, *_):
        pass


def now():
    return time.clock_gettime(time.CLOCK_MONOTONIC)


began = now()
if MODE == "crash":
    sys.exit("cannot load the model")
if MODE == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if MODE == "illegal":
    os.kill(os.getpid(), signal.SIGILL)
span("import", began, now())
server = HTTPServer(("127.0.0.1", PORT), Handler)
span("ready", now(), now())
server.serve_forever()
