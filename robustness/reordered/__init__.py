"""Plain models whose blocks run in another order: rebuilt, generating, exported."""
