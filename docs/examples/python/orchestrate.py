#!/usr/bin/python3
"""An orchestrator for Volt Unified Networking, on nothing but msgpack.

Usage: orchestrate.py NATS_URL HOST NETNS     such as nats://127.0.0.1:4222 h1 /run/netns/box
"""

import json
import secrets
import socket
import sys
import time
import urllib.parse

import msgpack

STREAM = "VOLT_NET_EVENTS"
CONSUMER = "example-python"


class Nats:
    """As much of a NATS client as is needed: https://docs.nats.io/reference/reference-protocols/nats-protocol"""

    def __init__(self, url):
        place = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((place.hostname, place.port or 4222), timeout=60)
        self.stream = self.socket.makefile("rwb")
        self.stream.readline()  # INFO
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        if place.username:
            options |= {"user": place.username, "pass": place.password}
        # Nobody else may guess where answers come.
        self.inbox = f"_INBOX.{secrets.token_hex(11)}"
        self.send(f"CONNECT {json.dumps(options)}")
        self.send(f"SUB {self.inbox}.* 1")

    def send(self, line, payload=None):
        self.stream.write(f"{line}\r\n".encode() + (b"" if payload is None else payload + b"\r\n"))
        self.stream.flush()

    def publish(self, subject, payload, reply="", headers=None):
        if headers is None:
            return self.send(f"PUB {subject} {reply} {len(payload)}", payload)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        return self.send(f"HPUB {subject} {reply} {len(head)} {len(head) + len(payload)}", head + payload)

    def message(self):
        """The next one: its subject, reply subject, headers as text, and payload."""
        while True:
            words = self.stream.readline().decode().split()
            if not words or words[0] == "-ERR":
                raise SystemExit(f"NATS: {' '.join(words) or 'the connection is closed'}")
            if words[0] == "PING":
                self.send("PONG")
            if words[0] not in ("MSG", "HMSG"):
                continue
            sizes = 2 if words[0] == "HMSG" else 1
            payload = self.stream.read(int(words[-1]) + 2)[:-2]
            head = payload[: int(words[-2])] if sizes == 2 else b""
            reply = words[3] if len(words) == 3 + sizes + 1 else ""
            return words[1], reply, head.decode(), payload[len(head) :]

    def request(self, subject, payload, headers=None):
        """One answer, and it is for this request: others come to other inboxes."""
        reply = f"{self.inbox}.{secrets.token_hex(11)}"
        self.publish(subject, payload, reply, headers)
        while True:
            came, ack, head, answer = self.message()
            # What is pulled from a stream comes under its own subject, with one to acknowledge it.
            if came == reply or ack.startswith("$JS.ACK."):
                return ack, head, answer


class VoltError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['code']}: {error['message']}")
        self.code = error["code"]
        self.retryable = error["retryable"]
        self.after = error.get("retryAfterMs", 0) / 1000


def ask(nats, subject, request):
    _, head, payload = nats.request(subject, msgpack.packb(request))
    if head.startswith("NATS/1.0 503"):
        raise VoltError({"code": "AGENT_UNAVAILABLE", "message": subject, "retryable": True})
    answer = msgpack.unpackb(payload)
    if "error" in answer:
        raise VoltError(answer["error"])
    return answer


def insist(nats, subject, request):
    """Again where that may help, later each time. A repeat is harmless."""
    wait = 0.1
    while True:
        try:
            return ask(nats, subject, request)
        except VoltError as error:
            if not error.retryable:
                raise
            say("retry", error.code)
            time.sleep(max(wait, error.after))
            wait = min(2 * wait, 5)


class Events:
    """Every event since the consumer was made, also those of when nobody was here."""

    def __init__(self, nats):
        self.nats = nats
        config = {"durable_name": CONSUMER, "ack_policy": "explicit", "deliver_policy": "new"}
        request = json.dumps({"stream_name": STREAM, "config": config}).encode()
        stored(nats.request(f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{CONSUMER}", request))

    def follow(self, handle):
        """Hands on one event after the other, until `handle` says that it has what it waited for."""
        pull = json.dumps({"batch": 1, "expires": 5_000_000_000}).encode()
        done = False
        while not done:
            ack, head, payload = self.nats.request(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}", pull)
            if not ack.startswith("$JS.ACK."):
                continue  # nothing came in five seconds
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            kind = headers["ce-type"].removeprefix("volt.net.")
            # $JS.ACK.<stream>.<consumer>.<times delivered>.<sequence in the stream>.<…>
            say("event", ack.split(".")[5], kind, headers["ce-subject"])
            done = handle(kind, msgpack.unpackb(payload))
            self.nats.request(ack, b"+ACK")  # the server has it once it answers


def stored(answer):
    """What JetStream answers is JSON."""
    said = json.loads(answer[2])
    if "error" in said:
        raise SystemExit(f"NATS: {said['error']['description']}")
    return said


def say(*words):
    print(*words, flush=True)


def main(url, host, netns):
    nats = Nats(url)
    events = Events(nats)
    own = "volt.net.v1"

    put = insist(nats, f"{own}.network.put", {"network": "volt0", "subnet": "10.42.0.0/24", "gateway": "10.42.0.1"})
    say("network", put["network"]["network"], "revision", put["revision"])

    web = {"id": "web", "workload": "vm-web", "kind": "vm", "network": "volt0"}
    box = {"id": "box", "workload": "container-box", "kind": "container", "network": "volt0", "netns": netns}
    for request in (web, box):
        attachment = insist(nats, f"{own}.host.{host}.attach", request)["attachment"]
        say("attached", attachment["id"], attachment["device"]["name"], attachment["addresses"][0]["address"])

    # A job is stored, and done when the host's agent is there; its outcome is an event.
    job = {"id": "web", "labels": {"tier": "front"}, "requestId": secrets.token_hex(8)}
    headers = {"Nats-Msg-Id": f"{host}.update.{job['requestId']}"}
    stored(nats.request(f"{own}.job.{host}.update", msgpack.packb(job), headers))

    def is_outcome(kind, body):
        if body["requestId"] != job["requestId"]:
            return False
        say("job", kind, body["error"]["code"] if kind == "failed" else body["labels"]["tier"])
        return True

    events.follow(is_outcome)

    going = {"web", "box"}
    for one in sorted(going):
        insist(nats, f"{own}.host.{host}.detach", {"id": one})

    def are_gone(kind, body):
        if kind == "detached" and body["id"] in going:
            say("detached", body["id"], body["reason"])
            going.discard(body["id"])
        return not going

    events.follow(are_gone)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
