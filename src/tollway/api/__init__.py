"""HTTP for programs. A chat completion goes from edge.py through completions.py to the gateway, and
its reply through replies.py to exchange.py; every other route is ASGI, from routes.py.

edge.py         a client's connection: bytes -> requests, in time and within bounds
exchange.py     one request on the short way, and what its reply is written to
idleness.py     closes connections on which nothing happens
completions.py  the metered route: hands a request to the pipeline, and sees that it is answered
replies.py      replies as bytes; the only place where an error becomes a status and a body
server.py       uvicorn's server, and how it stops without losing a request
body.py         what a head says of its body, and whether that can be taken
address.py      who is asking: the peer, or whom a trusted proxy names; their own request id
routes.py       every other route
operation.py    what those have in common: authentication, scope, rate
models.py       the models on offer
quote.py        what a completion could cost
accounts.py     an account's own credit, limits and transactions
tokens.py       an account's own tokens: issue, list, revoke
receipts.py     what a request cost; signed, and checked
health.py       does it run, is it ready
siblings.py     the other workers' metrics, on one page
openapi.py      `/openapi.json`, from the types
described.py    what no type can say of it
observer.py     counts each request and gives it its line
access_log.py   writes the lines
admin/          what the operator's commands do, and how they reach the server that runs
"""
