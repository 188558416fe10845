"""A customer in a terminal: `python customer.py ada` prints the events of the shop until Ctrl-C."""

import contextlib
import sys

from sio_pg_adapter import Client

client = Client()


@client.event
def connect():
    print("connected, nothing was missed" if client.recovered() else "connected with a new session", flush=True)


@client.event
def disconnect():
    print("connection lost", flush=True)


@client.on("*")
def received(event, data):
    print(event, data, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        client.connect("http://127.0.0.1:8000", auth={"customer": sys.argv[1]}, retry=True)
        client.wait()
