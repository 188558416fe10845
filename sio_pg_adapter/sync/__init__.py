"""The synchronous face: python-socketio's blocking API over the same node, on an event loop in a background thread.

Nothing here decides anything. A call is handed to the event loop, and the thread waits for its result. Handlers of
the application run in threads, and the event loop awaits them.
"""
