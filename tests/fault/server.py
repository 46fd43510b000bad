"""A PostgreSQL server that tests may harm, with databases of their own on it."""

from __future__ import annotations

import psycopg

from tests.fault.parts import Database
from tools.postgres import Cluster


class Server:
    """A PostgreSQL server of these tests, with a migrated database to copy."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.url = cluster.start()
        self._number = 0
        self.run("CREATE DATABASE pattern")
        Database.on_postgres(self.url, "pattern").migrate()

    def new_database(self) -> Database:
        """A fresh copy of the migrated database."""
        self._number += 1
        name = f"fault_{self._number}"
        self.run(f"CREATE DATABASE {name} TEMPLATE pattern")
        return Database.on_postgres(self.url, name)

    def run(self, *statements: str) -> None:
        """Execute statements as an administrator, outside any transaction."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            for statement in statements:
                connection.execute(statement)
