"""The server: python-socketio's, extended. Packets in, CONNECT to live, and how connections end."""
