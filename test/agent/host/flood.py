"""Sends frames by a device from the moment on that it is there and up, whatever becomes of it.

usage: flood.py DEVICE INTERVAL FRAME...

Each turn sends every FRAME (hex) once, its last four bytes replaced by the number of the turn, and takes
INTERVAL seconds at least. Ends with SIGTERM, after a whole turn, and says how many turns there were.
"""

import signal
import socket
import sys
import time

device, interval, *frames = sys.argv[1:]
heads = [bytes.fromhex(frame)[:-4] for frame in frames]
stopped = False


def stop(*_):
    global stopped
    stopped = True


def opened():
    while not stopped:
        try:
            port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            port.bind((device, 0))
            return port
        except OSError:
            port.close()
    return None


signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
turns = 0
port = opened()
due = time.monotonic()
while port is not None and not stopped:
    try:
        for head in heads:
            port.send(head + turns.to_bytes(4, "big"))
        turns += 1
    except OSError as error:
        # Down: not yet or no more. Gone: perhaps there will be another of that name.
        if error.errno != 100:
            port.close()
            port = opened()
    due += float(interval)
    time.sleep(max(0.0, due - time.monotonic()))
print(turns, flush=True)
