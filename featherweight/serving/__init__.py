"""Serving: a model behind OpenAI's HTTP interface, with a guard that holds every token until its verdict.

One file per concept: `options`, `job` (one request inside), `engine` (many of them in one batch), `request` and
`reply` (OpenAI's words), `answer` (events become text), `service`, `meters` (what Prometheus reads), `app` (endpoints),
`server` (start and end). Needs the extra `serve`.
"""
