"""NDIF servers: requests, and the answers that come back."""
