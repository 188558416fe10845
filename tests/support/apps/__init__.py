"""Applications as users write them, started as users start them; each reads SIO_PG_DSN."""
