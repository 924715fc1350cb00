"""cotune: tune one large language model on a server and many small ones on clients, together."""
