"""A customer of one of the shops, in a terminal: `python customer.py ada 8000` prints its events until Ctrl-C."""

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
        _, name, port = sys.argv
        client.connect(f"http://127.0.0.1:{port}", auth={"customer": name}, retry=True)
        client.wait()
