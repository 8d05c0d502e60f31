"""The edition of the demo: raise it when any byte of any demo bin changes, so that the demo is fetched again."""

EDITION = 1
