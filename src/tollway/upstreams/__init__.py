"""Servers that run models, and how to talk to them.

Talking to one:

base.py        what the gateway asks of one (`Upstream`), and where a stream goes (`EventSink`)
openai.py      any server with OpenAI's API over HTTP
pool.py        the connections to one server
connection.py  one connection: HTTP/1.1, its reply pushed into a `Receiver`
dialects.py    what servers do differently
normalise.py   replies in one form, whichever server they come from
refusals.py    what it means when a server refuses
complaints.py  logs what goes wrong at one, once a minute
embedded/      the model that Tollway runs itself

Choosing one:

watched.py     an upstream and all that is known of it
health.py      may it be asked?
places.py      how many requests it runs, may run, and who waits
balance.py     which of several is next
budget.py      how many more tries there are
checks.py      asks one now and then whether it is well
"""
