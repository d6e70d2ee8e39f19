"""One module per noun of ``sctl``; each has ``register(noun)`` and is imported when it is used."""
