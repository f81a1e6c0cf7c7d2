"""Attaches and detaches from docs/protocol.md alone: NATS by hand on a socket, another MessagePack library.

Usage: stranger.py PORT HOST OPERATION JSON   prints the answer as JSON
"""

import json
import socket
import sys

import msgpack


def read_line(stream):
    return stream.readline().decode().rstrip("\r\n")


def ask(port, subject, payload):
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    stream = connection.makefile("rwb")
    assert read_line(stream).startswith("INFO ")
    stream.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n')
    stream.write(b"SUB _INBOX.stranger 1\r\n")
    stream.write(f"PUB {subject} _INBOX.stranger {len(payload)}\r\n".encode() + payload + b"\r\n")
    stream.flush()
    while True:
        line = read_line(stream)
        if line == "PING":
            stream.write(b"PONG\r\n")
            stream.flush()
        elif line.startswith("MSG "):
            return stream.read(int(line.split()[-1]))
        elif line.startswith("HMSG "):
            header_bytes, total_bytes = map(int, line.split()[-2:])
            return stream.read(total_bytes)[header_bytes:]
        elif line.startswith("-ERR"):
            raise SystemExit(line)


port, host, operation, request = sys.argv[1:]
subject = f"volt.net.v1.host.{host}.{operation}"
answer = ask(int(port), subject, msgpack.packb(json.loads(request)))
print(json.dumps(msgpack.unpackb(answer)))
