"""The shop on a temporary PostgreSQL: `python run.py` needs no installed one."""

import os

from flask_migrate import upgrade

from sio_pg_adapter.embedded import EmbeddedPostgres

if __name__ == "__main__":
    with EmbeddedPostgres() as pg:
        os.environ["DATABASE_URL"] = pg.dsn(scheme="postgresql+psycopg")
        from app import create_app, socketio

        app = create_app()
        with app.app_context():
            upgrade()
        socketio.run(app, port=8002, allow_unsafe_werkzeug=True)
