"""A server that wants a key and cannot keep it to itself: it logs it, answers with it, and quotes
it in an error.

Arguments: --port N --api-key KEY --model FILE --got FILE [--deny]. What it was given goes to --got,
for the test to compare."""

import argparse
import base64
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import quote

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--api-key")
parser.add_argument("--model")
parser.add_argument("--got")
parser.add_argument("--deny", action="store_true")
args = parser.parse_args()
KEY, TOKEN = args.api_key, os.environ.get("HF_TOKEN", "")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, json.dumps({"data": [{"id": args.model}]}).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if args.deny:
            self.answer(
                403,
                json.dumps(
                    {"error": {"message": f"{'x' * 250} {KEY} is not the key, {TOKEN} neither"}}
                ).encode(),
            )
            return
        events = [
            json.dumps({"choices": [{"text": text, "token_ids": [i]}]})
            for i, text in enumerate((f"the key is {KEY}", " and more"))
        ]
        self.answer(200, "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


with open(args.got, "w") as got:
    json.dump({"key": KEY, "token": TOKEN}, got)
with open(args.model, "rb") as weights:
    weights.read()
print(f"non-default args: {{'api_key': [{KEY!r}], 'max_tokens': 5}}")
print(f"started with {KEY} and {TOKEN}", json.dumps({"env": TOKEN, "argv": sys.argv}), flush=True)
print(
    f"GET http://me:{quote(KEY, safe='')}@127.0.0.1/?sig={quote(TOKEN, safe='')}",
    "Authorization: Basic " + base64.b64encode(f"me:{KEY}".encode()).decode(),
    flush=True,
)
server = HTTPServer(("127.0.0.1", args.port), Handler)
server.handle_error = lambda *_: None  # a client that goes away is no news
server.serve_forever()
