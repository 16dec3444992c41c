"""Plain functions that trace bodies call, here or on a server.

A server gets this package as source text and runs it without the rest of the project.
"""
