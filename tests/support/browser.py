"""``CHROMIUM_OPTIONS``: the command-line options with which tests start Chromium."""

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
